import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { isDatabaseError } from './errors.ts';
import { readMigrations } from './migration-history.ts';
import { type MigrationOptions, stateOf, takeLock, withClient } from './migrations.ts';

export interface MarkAppliedOptions extends MigrationOptions {
  readonly name: string;
  /** How long a statement of the trial waits for a lock. */
  readonly lockTimeoutMs: number;
  /** Another migration of the database is at work. */
  readonly onWait?: () => void;
}

/** Thrown by `markApplied`, which changed nothing then. */
export class MarkRefused extends Error {
  constructor(why: string, cause?: unknown) {
    super(why, { cause });
    this.name = 'MarkRefused';
  }
}

/** What PostgreSQL says of what is there already, or was taken away already: as a migration that is applied again has it. */
const appliedAlready = new Set(['42P07', '42701', '42710', '42723', '42P06', '42704', '42703', '42883']);

/** Whether a database error says that what a migration makes is there, or what it takes away is gone. */
export function saysAppliedAlready(error: unknown): boolean {
  return isDatabaseError(error) && appliedAlready.has(error.code ?? '');
}

/**
 * Notes a migration as applied whose row was lost while what it made is there. It is tried first, in a transaction that is rolled back: one that
 * can be applied is not noted, for then its schema is not there. Throws MarkRefused for that, and for one that is not the first that the database lacks.
 */
export function markApplied({ url, migrations, name, lockTimeoutMs, onWait }: MarkAppliedOptions): Promise<void> {
  return withClient(url, async (client) => {
    await takeLock(client, onWait);
    const local = readMigrations(migrations);
    const migration = local.find((each) => each.name === name);
    if (!migration) throw new MarkRefused(`this build has no migration ${name}`);
    const { missing, failed } = await stateOf(client, migrations);
    const lacking = new Set([...missing, ...failed]);
    if (!lacking.has(name)) throw new MarkRefused(`${name} is applied, as the database has it`);
    const first = local.find((each) => lacking.has(each.name))?.name;
    if (first !== name) throw new MarkRefused(`the database lacks ${first}, which comes before ${name}`);
    await tryOut(client, name, migration.sql, lockTimeoutMs);
    await client.query('BEGIN');
    await client.query(
      'UPDATE _prisma_migrations SET rolled_back_at = now() WHERE migration_name = $1 AND finished_at IS NULL AND rolled_back_at IS NULL',
      [name],
    );
    await client.query(
      `INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at, finished_at, applied_steps_count)
       VALUES ($1, $2, $3, now(), now(), 0)`,
      [randomUUID(), migration.checksum, name],
    );
    await client.query('COMMIT');
  });
}

async function tryOut(client: pg.Client, name: string, script: string, lockTimeoutMs: number): Promise<void> {
  if (/\bCONCURRENTLY\b/i.test(script))
    throw new MarkRefused(`${name} builds an index that may be there already: deploy --retry-failed applies it`);
  // It would commit what it is only to be tried for.
  if (/^\s*COMMIT\b/im.test(script))
    throw new MarkRefused(`${name} cannot be tried: it ends its transaction by itself`);
  await client.query(`BEGIN; SET LOCAL lock_timeout = ${Math.round(lockTimeoutMs)}`);
  try {
    await client.query(script);
  } catch (error) {
    if (saysAppliedAlready(error)) return;
    throw new MarkRefused(`${name} was tried, and failed otherwise: ${(error as Error).message}`, error);
  } finally {
    await client.query('ROLLBACK');
  }
  throw new MarkRefused(`${name} can be applied, so its schema is not there: deploy --retry-failed applies it`);
}
