import {
  isConnectionFailure,
  isDatabaseError,
  type MarkAppliedOptions,
  MarkRefused,
  type MigrateOptions,
  MigrationFailed,
  type MigrationState,
  MigrationsRefused,
  markApplied,
  migrateDatabase,
  migrationNames,
  migrationReadiness,
  migrationState,
  saysAppliedAlready,
} from '@keytrail/storage';
import { table } from './rendering.ts';

/** How a build and a database stand to each other. */
export interface SchemaFound {
  /** Absent when the database could not be asked: see problem. */
  readonly state?: MigrationState['state'];
  /** Whether this build serves this database. */
  readonly serves?: boolean;
  /** SCHEMA_BEHIND or BUILD_BEHIND, when it does not. */
  readonly reason?: string;
  readonly newestInCode: string;
  readonly newestInDatabase?: string;
  /** The oldest migration that a build must know; empty while none is set. */
  readonly floor?: string;
  readonly missing: readonly string[];
  readonly unknown: readonly string[];
  readonly edited: readonly string[];
  readonly failed: readonly string[];
  /** Without a URL or a password in it. */
  readonly problem?: string;
  readonly unreachable?: boolean;
}

export interface Target {
  readonly url: string;
  readonly migrations: string;
}

const none = { missing: [], unknown: [], edited: [], failed: [] };

/** Never throws for what a database says, or does not. */
export async function compare(target: Target): Promise<SchemaFound> {
  const newestInCode = migrationNames(target.migrations).at(-1) ?? '';
  try {
    const { ready, reason, state, floor, newestInDatabase } = await migrationReadiness(target);
    return {
      ...state,
      serves: ready,
      ...(reason !== undefined && { reason }),
      newestInCode,
      newestInDatabase,
      ...(floor !== undefined && { floor }),
    };
  } catch (error) {
    return { newestInCode, ...none, ...describeProblem(error) };
  }
}

/** What was done to a database, and what state it is in by this build's migrations. */
export interface Migrated {
  readonly applied: readonly string[];
  readonly state?: MigrationState['state'];
  readonly problem?: string;
  readonly unreachable?: boolean;
}

export async function apply(options: MigrateOptions): Promise<Migrated> {
  try {
    return { applied: await migrateDatabase(options), state: 'current' };
  } catch (error) {
    if (error instanceof MigrationsRefused)
      return {
        applied: [],
        state: error.state.state,
        problem: `nothing was applied: ${error.message}${afterFailure(error.state)}`,
      };
    return { applied: [], ...describeProblem(error) };
  }
}

function afterFailure({ failed, edited, unknown }: MigrationState): string {
  if (failed.length === 0 || edited.length > 0 || unknown.length > 0) return '';
  return '; what failed is tried again by deploy --retry-failed';
}

/** Notes a migration as applied, and compares again: others may be missing still. */
export async function resolveApplied(options: MarkAppliedOptions): Promise<Migrated> {
  try {
    await markApplied(options);
    return { applied: [options.name], state: (await migrationState(options)).state };
  } catch (error) {
    if (error instanceof MarkRefused)
      return { applied: [], problem: `nothing was noted: ${error.message}`, unreachable: false };
    return { applied: [], ...describeProblem(error) };
  }
}

function describeProblem(error: unknown): { problem: string; unreachable: boolean } {
  if (error instanceof MigrationFailed) {
    if (saysAppliedAlready(error.cause))
      return {
        problem: `${error.message}; when its row was lost and its schema is there: migrate resolve --applied ${error.migration}; page docs/reasons/schema-behind.md`,
        unreachable: false,
      };
    const lock = isDatabaseError(error.cause) && error.cause.code === '55P03';
    const more = lock ? ', because others hold what it has to lock' : '';
    return {
      problem: `${error.message}${more}; it is not applied: deploy --retry-failed tries it again`,
      unreachable: false,
    };
  }
  const { message, code } = error as Error & { code?: string };
  const unreachable = isConnectionFailure(error) || (!isDatabaseError(error) && typeof code === 'string');
  return { problem: `${unreachable ? 'it cannot be reached' : 'it failed'}: ${message || code}`, unreachable };
}

/** One line for each database, under a heading. */
export function foundTable(found: readonly (SchemaFound & { readonly service: string })[]): string {
  return table([
    ['SERVICE', 'STATE', 'SERVES', 'NEWEST IN CODE', 'NEWEST IN DATABASE', 'FLOOR'],
    ...found.map(({ service, state, serves, reason, newestInCode, newestInDatabase, floor }) => [
      service,
      state ?? 'unknown',
      serves === undefined ? '-' : serves ? 'yes' : `no: ${reason}`,
      newestInCode || '-',
      newestInDatabase || '-',
      floor || '-',
    ]),
  ]);
}

const meaning = {
  missing: 'deploy would apply it',
  unknown: 'not known to this build',
  edited: 'changed after it had been applied',
  failed: 'begun, and not finished: under way, or failed; then deploy --retry-failed tries it again',
} as const;

/** A line for each migration that is not the same on both sides. */
export function describeFound({ service, problem, ...found }: SchemaFound & { readonly service: string }): string[] {
  if (problem) return [`${service}: ${problem}`];
  return (['missing', 'unknown', 'edited', 'failed'] as const).flatMap((kind) =>
    found[kind].map((name) => `${service}: ${kind} ${name} (${meaning[kind]})`),
  );
}
