import type { Database } from './database.ts';
import { isDatabaseError } from './errors.ts';
import { type AppliedMigration, compareHistories, type MigrationState, readMigrations } from './migration-history.ts';
import { appliedMigrationsText } from './migrations.ts';
import { statement } from './statement.ts';

/** Whether a build and its database fit together. */
export interface SchemaReadiness {
  readonly ready: boolean;
  readonly reason?: 'SCHEMA_BEHIND' | 'BUILD_BEHIND';
  /** One line for logs and the readiness answer. */
  readonly why?: string;
  readonly state: MigrationState;
  /** The oldest migration that a build must know, when a contracting migration has set one. */
  readonly floor?: string;
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

const applied = statement('applied_migrations', appliedMigrationsText);
const floorOf = statement('schema_floor', 'SELECT migration FROM schema_floor');

/**
 * Compares the build's migrations with the database's, both ways. Behind, edited or failed: not ready (SCHEMA_BEHIND).
 * Ahead: ready while the floor allows it, with `why` as a warning; otherwise, or without a floor, not ready (BUILD_BEHIND).
 * Throws when the database cannot be asked.
 */
export async function schemaReadiness(db: Database, migrationsFolder: string): Promise<SchemaReadiness> {
  const local = readMigrations(migrationsFolder);
  const state = compareHistories(local, await rowsOrNone<AppliedMigration>(db.query(applied, [])));
  if (state.state === 'current') return { ready: true, state };
  if (state.state !== 'ahead') {
    const problems = (['missing', 'edited', 'failed', 'unknown'] as const)
      .filter((kind) => state[kind].length > 0)
      .map((kind) => `${kind} ${state[kind].join(', ')}`);
    return {
      ready: false,
      reason: 'SCHEMA_BEHIND',
      why: `the database is ${state.state}: ${problems.join('; ')}`,
      state,
    };
  }
  const floor = (await rowsOrNone<{ migration: string }>(db.query(floorOf, [])))[0]?.migration;
  const unknown = `the database has migrations unknown to this build: ${state.unknown.join(', ')}`;
  if (floor !== undefined && (floor === '' || local.some(({ name }) => name === floor))) {
    return { ready: true, why: unknown, state, floor };
  }
  const because = floor === undefined ? 'no compatibility floor is set' : `builds must know ${floor}`;
  return {
    ready: false,
    reason: 'BUILD_BEHIND',
    why: `${unknown}; ${because}`,
    state,
    ...(floor !== undefined && { floor }),
  };
}

async function rowsOrNone<R>(rows: Promise<unknown[]>): Promise<R[]> {
  try {
    return (await rows) as R[];
  } catch (error) {
    if (isDatabaseError(error) && error.code === '42P01') return [];
    throw error;
  }
}
