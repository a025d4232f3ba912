import { z } from 'zod';

/** One environment variable: its name, its rule (zod), and what it is for. Secrets are never printed. */
export interface Setting<T extends z.ZodType = z.ZodType> {
  readonly variable: string;
  readonly rule: T;
  readonly describe: string;
  readonly secret: boolean;
}

/** A named group of settings; a service's configuration is a group made of other groups. */
export type Settings = Readonly<Record<string, Setting>>;

/** What `readSettings` returns for a group. */
export type SettingsValues<S extends Settings> = { readonly [K in keyof S]: z.output<S[K]['rule']> };

/** A line of the configuration reference. */
export interface SettingReference {
  readonly variable: string;
  readonly describe: string;
  readonly required: boolean;
  readonly default: string | undefined;
  readonly secret: boolean;
}

/** Thrown when the environment breaks rules; the message names every variable that does, never its value. */
export class SettingsError extends Error {
  readonly problems: readonly { readonly variable: string; readonly problem: string }[];

  constructor(problems: readonly { readonly variable: string; readonly problem: string }[]) {
    super(`the environment is not valid:\n${problems.map((p) => `  ${p.variable}: ${p.problem}`).join('\n')}`);
    this.name = 'SettingsError';
    this.problems = problems;
  }
}

export function setting<T extends z.ZodType>(variable: string, rule: T, describe: string): Setting<T> {
  return { variable, rule, describe, secret: false };
}

/** A setting whose value is a credential or holds one. */
export function secretSetting<T extends z.ZodType>(variable: string, rule: T, describe: string): Setting<T> {
  return { variable, rule, describe, secret: true };
}

/** Rules for the kinds of values that recur. Durations are whole milliseconds. */
export const rule = {
  text: () => z.string().min(1),
  url: () => z.url(),
  port: () => z.coerce.number().int().min(0).max(65535),
  count: () => z.coerce.number().int().min(0),
  durationMs: () => z.coerce.number().int().min(1),
  ratio: () => z.coerce.number().min(0).max(1),
  flag: () => z.stringbool(),
  list: () =>
    z.string().transform((text) =>
      text
        .split(',')
        .map((item) => item.trim())
        .filter((item) => item !== ''),
    ),
} as const;

/** Reads a group from an environment. An empty variable counts as unset. Throws SettingsError naming every broken variable at once. */
export function readSettings<S extends Settings>(
  settings: S,
  environment: Readonly<Record<string, string | undefined>>,
): SettingsValues<S> {
  const values: Record<string, unknown> = {};
  const problems: { variable: string; problem: string }[] = [];
  for (const [name, { variable, rule }] of Object.entries(settings)) {
    const parsed = rule.safeParse(environment[variable] === '' ? undefined : environment[variable]);
    if (parsed.success) values[name] = parsed.data;
    else
      problems.push({
        variable,
        problem: environment[variable] ? parsed.error.issues.map((issue) => issue.message).join('; ') : 'is required',
      });
  }
  if (problems.length > 0) throw new SettingsError(problems);
  return values as SettingsValues<S>;
}

/** The reference of a group, in its order, for the generated documentation. */
export function describeSettings(settings: Settings): SettingReference[] {
  return Object.values(settings).map(({ variable, rule, describe, secret }) => {
    const unset = rule.safeParse(undefined);
    const fallback = unset.success && unset.data !== undefined ? unset.data : undefined;
    return {
      variable,
      describe,
      secret,
      required: !unset.success,
      default: fallback === undefined ? undefined : Array.isArray(fallback) ? fallback.join(',') : String(fallback),
    };
  });
}

export { z };
