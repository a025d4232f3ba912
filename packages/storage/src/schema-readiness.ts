import { isDatabaseError } from './errors.ts';
import {
  type AppliedMigration,
  appliedMigrationsText,
  compareHistories,
  type LocalMigration,
  type MigrationState,
  readMigrations,
} from './migration-history.ts';
import { type Statement, statement } from './statement.ts';

/** Whether a build and its database fit together. */
export interface SchemaReadiness {
  readonly ready: boolean;
  readonly reason?: 'SCHEMA_BEHIND' | 'BUILD_BEHIND';
  /** One line for logs and the readiness answer. */
  readonly why?: string;
  /** What a refusal carries: names by kind, separated by commas. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly state: MigrationState;
  /** The oldest migration that a build must know; empty as long as no contracting migration has set one; absent without the table. */
  readonly floor?: string;
  /** That was applied; empty when none was. */
  readonly newestInDatabase: string;
}

/**
 * SQL for the first migration: the compatibility floor. A contracting migration ends with
 * `UPDATE schema_floor SET migration = '<its own name>'`; builds that do not know that migration must not serve.
 */
export const schemaFloorMigration = `CREATE TABLE schema_floor (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  migration text NOT NULL
);
INSERT INTO schema_floor (migration) VALUES ('');
`;

/** Runs one of the two statements of a comparison. */
export type SchemaAsker = (statement: Statement) => Promise<unknown[]>;

const applied = statement('applied_migrations', appliedMigrationsText);
const floorOf = statement('schema_floor', 'SELECT migration FROM schema_floor');

/** Compares the migrations of a folder with those of the database that is asked: see judgeSchema. */
export function schemaReadiness(ask: SchemaAsker, migrationsFolder: string): Promise<SchemaReadiness> {
  return judgeSchema(ask, readMigrations(migrationsFolder));
}

/**
 * Compares the build's migrations with the database's, both ways. Lacking one that the build has, or having another text of it, or having
 * begun it without an end: not ready (SCHEMA_BEHIND). Ahead, also by one that is under way: ready while the floor allows it, with `why` as a
 * warning; otherwise, or without a floor, not ready (BUILD_BEHIND). Throws when the database cannot be asked.
 */
export async function judgeSchema(ask: SchemaAsker, local: readonly LocalMigration[]): Promise<SchemaReadiness> {
  const rows = await rowsOrNone<AppliedMigration>(ask(applied));
  const floor = (await rowsOrNone<{ migration: string }>(ask(floorOf)))[0]?.migration;
  const state = compareHistories(local, rows);
  const known = new Set(local.map(({ name }) => name));
  // Nothing of a failed migration remains that anything reads, so one that this build does not have takes nothing from it.
  const underway = state.failed.filter((name) => !known.has(name));
  const failed = state.failed.filter((name) => known.has(name));
  const newestInDatabase = newestOf(rows);
  const found = { state, newestInDatabase, ...(floor !== undefined && { floor }) };

  const unknown = [...state.unknown, ...underway];
  if (state.unknown.length > 0 && !(floor === '' || known.has(floor ?? ''))) {
    const because = floor === undefined ? 'no compatibility floor is set' : `builds must know ${floor}`;
    return {
      ...found,
      ready: false,
      reason: 'BUILD_BEHIND',
      why: `the database has migrations unknown to this build: ${unknown.join(', ')}; ${because}`,
      metadata: { unknown: unknown.join(', '), ...(floor !== undefined && { floor }) },
    };
  }
  const lacking = Object.entries({ missing: state.missing, edited: state.edited, failed }).filter(
    ([, names]) => names.length > 0,
  );
  if (lacking.length > 0) {
    const named = unknown.length > 0 ? [...lacking, ['unknown', unknown] as const] : lacking;
    return {
      ...found,
      ready: false,
      reason: 'SCHEMA_BEHIND',
      why: `the database is ${state.state}: ${named.map(([kind, names]) => `${kind} ${names.join(', ')}`).join('; ')}`,
      metadata: Object.fromEntries(named.map(([kind, names]) => [kind, names.join(', ')])),
    };
  }
  if (unknown.length === 0) return { ...found, ready: true };
  return { ...found, ready: true, why: `the database has migrations unknown to this build: ${unknown.join(', ')}` };
}

function newestOf(rows: readonly AppliedMigration[]): string {
  const done = rows.filter((row) => row.finished_at !== null && row.rolled_back_at === null);
  return (
    done
      .map((row) => row.migration_name)
      .sort()
      .at(-1) ?? ''
  );
}

async function rowsOrNone<R>(rows: Promise<unknown[]>): Promise<R[]> {
  try {
    return (await rows) as R[];
  } catch (error) {
    if (isDatabaseError(error) && error.code === '42P01') return [];
    throw error;
  }
}
