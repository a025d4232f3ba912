import pg from 'pg';
import { type AppliedMigration, compareHistories, type MigrationState, readMigrations } from './migration-history.ts';
import { openSchemaEngine } from './schema-engine.ts';

export interface MigrationOptions {
  readonly url: string;
  /** Folder in Prisma's layout: `<timestamp>_<name>/migration.sql`. */
  readonly migrations: string;
}

/** Thrown by `migrateDatabase` for a database that it must not touch: ahead of the folder, or diverged from it. */
export class MigrationsRefused extends Error {
  readonly state: MigrationState;

  constructor(state: MigrationState) {
    const parts = (['unknown', 'missing', 'edited', 'failed'] as const)
      .filter((kind) => state[kind].length > 0)
      .map((kind) => `${kind}: ${state[kind].join(', ')}`);
    super(`the migrations of the database and of this build differ (${state.state}); ${parts.join('; ')}`);
    this.name = 'MigrationsRefused';
    this.state = state;
  }
}

export const appliedMigrationsText =
  'SELECT migration_name, checksum, finished_at, rolled_back_at FROM _prisma_migrations ORDER BY started_at';

/** Both directions, with names. A database without a migrations table has applied none. */
export async function migrationState({ url, migrations }: MigrationOptions): Promise<MigrationState> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => {});
  await client.connect();
  try {
    const { rows } = await client.query<{ present: boolean }>(
      `SELECT to_regclass('_prisma_migrations') IS NOT NULL AS present`,
    );
    const applied = rows[0]?.present ? (await client.query<AppliedMigration>(appliedMigrationsText)).rows : [];
    return compareHistories(readMigrations(migrations), applied);
  } finally {
    await client.end();
  }
}

/**
 * Applies what the database lacks, each migration in one transaction, by Prisma's schema engine, under its advisory
 * lock. Returns the names applied. Throws MigrationsRefused, having changed nothing, when the database is ahead or
 * diverged, and MigrationFailed for one that PostgreSQL refused.
 */
export async function migrateDatabase(options: MigrationOptions): Promise<string[]> {
  const state = await migrationState(options);
  if (state.state === 'ahead' || state.state === 'diverged') throw new MigrationsRefused(state);
  if (state.state === 'current') return [];
  const engine = await openSchemaEngine(options.url);
  try {
    return await engine.apply(readMigrations(options.migrations));
  } finally {
    await engine.close();
  }
}
