import { randomUUID } from 'node:crypto';
import { chmodSync, closeSync, fsyncSync, linkSync, openSync, rmSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { WrappedKey } from './data-key.ts';
import { KeyStoreDamagedError, KeyStoreInUseError, KeyStoreNewerError } from './key-store-errors.ts';

/** “KTKS”: tells this file from other ones of SQLite. */
const applicationId = 0x4b_54_4b_53;

/** One step from each version to the next; the first makes an empty file version 1. Steps are never changed, only added. */
const steps: readonly string[] = [
  `CREATE TABLE wrapped_key (
     only integer PRIMARY KEY CHECK (only = 1),
     salt blob NOT NULL CHECK (length(salt) = 32),
     cost_n integer NOT NULL, cost_r integer NOT NULL, cost_p integer NOT NULL,
     sealed blob NOT NULL
   ) STRICT;
   CREATE TABLE sum (only integer PRIMARY KEY CHECK (only = 1), value blob NOT NULL) STRICT;
   CREATE TABLE stored (
     id blob PRIMARY KEY CHECK (length(id) = 32),
     grouping blob NOT NULL CHECK (length(grouping) IN (0, 32)),
     value blob NOT NULL
   ) STRICT, WITHOUT ROWID;
   CREATE INDEX stored_by_group ON stored (grouping) WHERE length(grouping) > 0;`,
];

/** Makes the file whole or not at all: an empty one at `path` was cut off. */
export function createStoreFile(path: string, fill: (db: DatabaseSync) => void): void {
  const unfinished = `${path}.${randomUUID()}.new`;
  closeSync(openSync(unfinished, 'wx', 0o600));
  try {
    const db = new DatabaseSync(unfinished);
    try {
      prepare(db);
      db.exec(`BEGIN EXCLUSIVE; PRAGMA application_id = ${applicationId}`);
      migrate(db, steps);
      fill(db);
      db.exec('COMMIT');
    } finally {
      db.close();
    }
    // Unlike a rename it never takes the place of a store that somebody else made meanwhile.
    linkSync(unfinished, path);
    syncFolder(path);
  } finally {
    rmSync(unfinished, { force: true });
    rmSync(`${unfinished}-journal`, { force: true });
  }
}

/**
 * Opens the file for this client alone, until it is closed.
 *
 * @throws KeyStoreInUseError, KeyStoreDamagedError, KeyStoreNewerError.
 */
export function openStoreFile(path: string): DatabaseSync {
  // Others of the machine must not even try passphrases.
  if ((statSync(path).mode & 0o077) !== 0) chmodSync(path, 0o600);
  const db = new DatabaseSync(path);
  try {
    readingFile(path, () => {
      prepare(db);
      db.exec('BEGIN EXCLUSIVE');
      if (numberOf(db, 'application_id') !== applicationId) throw new KeyStoreDamagedError(path, 'not-a-store');
      const version = numberOf(db, 'user_version');
      if (version > steps.length) throw new KeyStoreNewerError(path, version);
      if (version < 1) throw new KeyStoreDamagedError(path, 'malformed');
      migrate(db, steps);
      db.exec('COMMIT');
      const [found] = db.prepare('PRAGMA integrity_check(1)').all();
      if (found?.integrity_check !== 'ok') throw new KeyStoreDamagedError(path, 'malformed', found?.integrity_check);
    });
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

/** Brings the schema up to the last version, one step after the other, in the transaction that is open. */
export function migrate(db: DatabaseSync, known: readonly string[]): void {
  for (let version = numberOf(db, 'user_version'); version < known.length; version += 1) {
    db.exec(known[version] ?? '');
    db.exec(`PRAGMA user_version = ${version + 1}`);
  }
}

/** What SQLite says of a file, as one of this package's errors. */
export function readingFile<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    const code = primaryCode(error);
    if (code === sqlite.busy || code === sqlite.locked) throw new KeyStoreInUseError(path);
    if (code === sqlite.corrupt) throw new KeyStoreDamagedError(path, 'malformed', error);
    if (code === sqlite.notADatabase) throw new KeyStoreDamagedError(path, 'not-a-store', error);
    // What is not there, or is another thing than the schema has.
    if (code === sqlite.error) throw new KeyStoreDamagedError(path, 'malformed', error);
    throw error;
  }
}

export function readWrappedKey(db: DatabaseSync): WrappedKey | undefined {
  const row = db.prepare('SELECT salt, cost_n, cost_r, cost_p, sealed FROM wrapped_key').get();
  if (row === undefined) return undefined;
  const { salt, sealed, cost_n, cost_r, cost_p } = row;
  const cost = { N: Number(cost_n), r: Number(cost_r), p: Number(cost_p) };
  return { salt: salt as Uint8Array, cost, sealed: sealed as Uint8Array };
}

export function writeWrappedKey(db: DatabaseSync, { salt, cost, sealed }: WrappedKey): void {
  db.prepare(
    'INSERT OR REPLACE INTO wrapped_key (only, salt, cost_n, cost_r, cost_p, sealed) VALUES (1, ?, ?, ?, ?, ?)',
  ).run(salt, cost.N, cost.r, cost.p, sealed);
}

/** https://www.sqlite.org/rescode.html */
const sqlite = { error: 1, busy: 5, locked: 6, corrupt: 11, notADatabase: 26 } as const;

function primaryCode(error: unknown): number | undefined {
  const code = error instanceof Error && 'errcode' in error ? error.errcode : undefined;
  return typeof code === 'number' ? code & 0xff : undefined;
}

/**
 * With the rollback journal cut off at each commit, what was overwritten is nowhere in a file any more. FULL syncs journal and file before a
 * commit is acknowledged.
 */
function prepare(db: DatabaseSync): void {
  db.exec(`
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = TRUNCATE;
    PRAGMA synchronous = FULL;
    PRAGMA secure_delete = ON;
    PRAGMA temp_store = MEMORY;
    PRAGMA trusted_schema = OFF;
    PRAGMA cell_size_check = ON;
  `);
}

function numberOf(db: DatabaseSync, pragma: 'application_id' | 'user_version'): number {
  return Number(db.prepare(`PRAGMA ${pragma}`).get()?.[pragma]);
}

/** The name itself must be on the disk, too. */
function syncFolder(path: string): void {
  const folder = openSync(dirname(path), 'r');
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}
