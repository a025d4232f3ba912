import { setTimeout } from 'node:timers/promises';
import pg from 'pg';
import {
  type AppliedMigration,
  appliedMigrationsText,
  compareHistories,
  type MigrationState,
  readMigrations,
} from './migration-history.ts';
import { openSchemaEngine } from './schema-engine.ts';
import { judgeSchema, type SchemaReadiness } from './schema-readiness.ts';

export interface MigrationOptions {
  readonly url: string;
  /** Folder in Prisma's layout: `<timestamp>_<name>/migration.sql`. */
  readonly migrations: string;
}

export interface MigrateOptions extends MigrationOptions {
  /** How long a statement of a migration waits for a lock; then the migration fails, and those that wait behind it go on. By default for ever. */
  readonly lockTimeoutMs?: number;
  /** Tries migrations again that failed: they are noted as rolled back, for nothing of them remained, and an unfinished index is built anew. */
  readonly retryFailed?: boolean;
  /** What is to be applied, told when nobody else migrates the database. */
  readonly onPlan?: (names: readonly string[]) => void;
  /** Another migration of the database is at work. */
  readonly onWait?: () => void;
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

/** Both directions, with names. A database without a migrations table has applied none. */
export function migrationState({ url, migrations }: MigrationOptions): Promise<MigrationState> {
  return withClient(url, (client) => stateOf(client, migrations));
}

/** Whether the build of a migrations folder may serve the database, and why not: what a service asks of itself. */
export function migrationReadiness({ url, migrations }: MigrationOptions): Promise<SchemaReadiness> {
  return withClient(url, (client) =>
    judgeSchema(async ({ text }) => (await client.query(text)).rows, readMigrations(migrations)),
  );
}

/**
 * Applies what the database lacks, each migration in one transaction (but for an index built CONCURRENTLY), by Prisma's schema engine; one caller at a time, and another waits.
 * Returns the names applied. Throws MigrationsRefused, having changed nothing, when the database is ahead or diverged, and MigrationFailed
 * for one that PostgreSQL refused.
 */
export function migrateDatabase(options: MigrateOptions): Promise<string[]> {
  const { url, migrations, retryFailed, lockTimeoutMs, onPlan, onWait } = options;
  return withClient(url, async (client) => {
    // The engine has a lock of its own, but gives up after ten seconds; and what is decided here must still hold when it begins.
    await takeLock(client, onWait);
    let state = await stateOf(client, migrations);
    if (retryFailed && state.failed.length > 0) {
      await client.query(
        'UPDATE _prisma_migrations SET rolled_back_at = now() WHERE finished_at IS NULL AND rolled_back_at IS NULL',
      );
      state = await stateOf(client, migrations);
    }
    if (state.state === 'ahead' || state.state === 'diverged') throw new MigrationsRefused(state);
    if (state.state === 'current') return [];
    onPlan?.(state.missing);
    const engine = await openSchemaEngine(url, lockTimeoutMs);
    try {
      return await engine.apply(readMigrations(migrations));
    } finally {
      await engine.close();
    }
  });
}

/** Held by a session that migrates a database. */
const lock = 0x6b74_6d67;
const askAgainMs = 100;

/** Asks again and again: a statement that waits in PostgreSQL has a snapshot, and CREATE INDEX CONCURRENTLY of whoever has the lock would wait for its end. */
export async function takeLock(client: pg.Client, onWait?: () => void): Promise<void> {
  for (let waits = false; ; waits = true) {
    const { rows } = await client.query<{ free: boolean }>('SELECT pg_try_advisory_lock($1) AS free', [lock]);
    if (rows[0]?.free) return;
    if (!waits) onWait?.();
    await setTimeout(askAgainMs);
  }
}

export async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 10_000 });
  client.on('error', () => {});
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => {});
  }
}

export async function stateOf(client: pg.Client, migrations: string): Promise<MigrationState> {
  const { rows } = await client.query<{ present: boolean }>(
    `SELECT to_regclass('_prisma_migrations') IS NOT NULL AS present`,
  );
  const applied = rows[0]?.present ? (await client.query<AppliedMigration>(appliedMigrationsText)).rows : [];
  return compareHistories(readMigrations(migrations), applied);
}
