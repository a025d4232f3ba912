import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

/** A migration in a folder: Prisma's layout, `<timestamp>_<name>/migration.sql`. */
export interface LocalMigration {
  readonly name: string;
  readonly sql: string;
  /** SHA-256 of the file, hex, as Prisma stores it. */
  readonly checksum: string;
}

/** A row of Prisma's `_prisma_migrations`. */
export interface AppliedMigration {
  readonly migration_name: string;
  readonly checksum: string;
  readonly finished_at: Date | null;
  readonly rolled_back_at: Date | null;
}

export const appliedMigrationsText =
  'SELECT migration_name, checksum, finished_at, rolled_back_at FROM _prisma_migrations ORDER BY started_at';

export interface MigrationState {
  /** behind: the database lacks migrations; ahead: it has some that the folder does not know, or one of them is under way; diverged: both, or edited or failed ones. */
  readonly state: 'current' | 'behind' | 'ahead' | 'diverged';
  /** In the folder, not in the database. */
  readonly missing: string[];
  /** In the database, not in the folder: a rolled-back build sees these. */
  readonly unknown: string[];
  /** Changed in the folder after they had been applied. */
  readonly edited: string[];
  /** Begun in the database and never finished. */
  readonly failed: string[];
}

/** The names of the migrations in a folder, oldest first. */
export function migrationNames(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name)
    .sort();
}

export function readMigrations(folder: string): LocalMigration[] {
  return migrationNames(folder).map((name) => {
    const sql = readFileSync(path.join(folder, name, 'migration.sql'), 'utf8');
    return { name, sql, checksum: createHash('sha256').update(sql).digest('hex') };
  });
}

/** Compares the two histories in both directions; Prisma's own `migrate status` looks in one. */
export function compareHistories(
  local: readonly LocalMigration[],
  applied: readonly AppliedMigration[],
): MigrationState {
  const standing = applied.filter((row) => row.rolled_back_at === null);
  const done = new Map(standing.filter((row) => row.finished_at).map((row) => [row.migration_name, row.checksum]));
  const failed = standing.filter((row) => !row.finished_at).map((row) => row.migration_name);
  const names = new Set(local.map(({ name }) => name));
  const missing = local.map(({ name }) => name).filter((name) => !done.has(name) && !failed.includes(name));
  const unknown = [...done.keys()].filter((name) => !names.has(name)).sort();
  const edited = local
    .filter(({ name, checksum }) => done.has(name) && done.get(name) !== checksum)
    .map(({ name }) => name);
  // One that is under way, as in each roll-out, makes an older build older than its database, and no more.
  const ahead = unknown.length > 0 || failed.some((name) => !names.has(name));
  const diverged = (missing.length > 0 && ahead) || edited.length > 0 || failed.some((name) => names.has(name));
  const state = diverged ? 'diverged' : missing.length > 0 ? 'behind' : ahead ? 'ahead' : 'current';
  return { state, missing, unknown, edited, failed };
}
