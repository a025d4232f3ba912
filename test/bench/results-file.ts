import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { Row } from './measurement.ts';

/** What a run measured, and where, when and of which revision. */
export interface Results {
  readonly machine: object;
  readonly versions: { readonly revision: string };
  readonly startedAt: string;
  readonly rows: readonly Row[];
  readonly details: Readonly<Record<string, unknown>>;
  /** Rows of earlier runs of the same revision, by when their run started. */
  readonly kept?: Readonly<Record<string, string>>;
}

/**
 * Writes the results. Rows in the file that this run was not asked for stay when they are of the same revision, without changes to
 * it; `say` tells what became of them.
 */
export function writeResults(
  file: string,
  results: Results,
  wanted: readonly string[],
  say: (line: string) => void,
): Results {
  const before = readResults(file);
  const others = before?.rows.filter(({ name }) => !wanted.includes(name)) ?? [];
  const written = before && others.length > 0 ? withRowsOf(before, others, results, say) : results;
  writeFileSync(file, `${JSON.stringify(written, undefined, 2)}\n`);
  return written;
}

function withRowsOf(before: Results, others: readonly Row[], results: Results, say: (line: string) => void): Results {
  const names = others.map(({ name }) => name);
  const { revision } = results.versions;
  if (before.versions.revision !== revision || !/^[0-9a-f]+$/.test(revision)) {
    say(`dropped, not measured at this revision: ${names.join(', ')}`);
    return results;
  }
  say(`kept from an earlier run of this revision: ${names.join(', ')}`);
  const details = Object.entries(before.details).filter(([key]) => names.some((name) => name.startsWith(key)));
  return {
    ...results,
    rows: [...others, ...results.rows],
    details: { ...Object.fromEntries(details), ...results.details },
    kept: Object.fromEntries(names.map((name) => [name, before.kept?.[name] ?? before.startedAt])),
  };
}

function readResults(file: string): Results | undefined {
  if (!existsSync(file)) return undefined;
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as Results;
  } catch {
    return undefined;
  }
}
