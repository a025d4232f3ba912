import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseAway, DatabaseUnfit } from '@keytrail/telemetry';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Database, migrateDatabase, openDatabase, schemaFloorMigration, statement } from '../src/index.ts';
import { startTestPostgres, type TestPostgres } from './own-database.ts';

const [first, second] = ['20260101000000_first', '20260102000000_second'];
const addNote = statement('gate_add_note', "INSERT INTO notes (text) VALUES ('written')");
const readNotes = statement('gate_notes', 'SELECT text FROM notes');

let postgres: TestPostgres;
const folders: string[] = [];

beforeAll(async () => {
  postgres = await startTestPostgres();
}, 60_000);
afterAll(async () => {
  for (const folder of folders) rmSync(folder, { recursive: true });
  await postgres?.stop();
});

function build(...names: string[]): string {
  const folder = mkdtempSync(join(tmpdir(), 'keytrail-gate-'));
  folders.push(folder);
  const texts: Record<string, string> = {
    [first]: `CREATE TABLE notes (text text);${schemaFloorMigration}`,
    [second]: `ALTER TABLE notes ADD COLUMN more text; UPDATE schema_floor SET migration = '${second}';`,
  };
  for (const name of names) {
    mkdirSync(join(folder, name));
    writeFileSync(join(folder, name, 'migration.sql'), texts[name] ?? '');
  }
  return folder;
}

async function opened(url: string, migrations: string, work: (db: Database) => Promise<void>): Promise<void> {
  const db = openDatabase({ url, service: 'test', connections: 2, statementTimeoutMs: 2000, migrations });
  await work(db).finally(() => db.close());
}

/** Every way to write, each with what became of it. */
async function tryAll(db: Database): Promise<unknown[]> {
  const prisma = await db.prismaAdapter().connect();
  const ways = [
    db.query(addNote, []),
    db.pipelined.query(addNote, []),
    db.transaction((tx) => tx.query(addNote, [])),
    db.dedicatedConnection().then((client) => client.end()),
    prisma.executeRaw({ sql: addNote.text, args: [], argTypes: [] }),
    prisma.queryRaw({ sql: readNotes.text, args: [], argTypes: [] }),
  ];
  return Promise.all(
    ways.map((way) =>
      way.then(
        () => 'done',
        (error: unknown) => error,
      ),
    ),
  );
}

test('a database that lacks a migration is neither read nor written until it is migrated, and then it is, without a restart', async () => {
  const url = await postgres.createDatabase();
  await migrateDatabase({ url, migrations: build(first) });
  const migrations = build(first, second);
  await opened(url, migrations, async (db) => {
    expect(db.schema.closed).toBeInstanceOf(DatabaseAway);
    await db.schema.check();
    const changes: unknown[] = [];
    db.schema.onChange(() => changes.push(db.schema.closed));
    for (const error of await tryAll(db))
      expect(error).toMatchObject({ name: 'DatabaseUnfit', reason: 'SCHEMA_BEHIND', metadata: { missing: second } });
    expect(await db.asItIs.query(readNotes, [])).toEqual([]);
    await migrateDatabase({ url, migrations });
    expect(await db.schema.check()).toMatchObject({ ready: true, newestInDatabase: second });
    expect(changes).toEqual([undefined]);
    expect(await tryAll(db)).toEqual(Array(6).fill('done'));
  });
});

test('a build that was rolled back beyond the floor writes nothing, and one that runs stops writing when it is overtaken', async () => {
  const url = await postgres.createDatabase();
  await migrateDatabase({ url, migrations: build(first) });
  await opened(url, build(first), async (db) => {
    expect(await db.schema.check()).toMatchObject({ ready: true, floor: '' });
    await db.query(addNote, []);
    await migrateDatabase({ url, migrations: build(first, second) });
    await db.schema.check();
    for (const error of await tryAll(db)) {
      expect(error).toBeInstanceOf(DatabaseUnfit);
      expect(error).toMatchObject({ reason: 'BUILD_BEHIND', metadata: { unknown: second, floor: second } });
    }
    expect(await db.asItIs.query(readNotes, [])).toEqual([{ text: 'written' }]);
  });
});

test('the migrations of a build are those that it was started with, whatever lies on disk later', async () => {
  const url = await postgres.createDatabase();
  const migrations = build(first);
  await migrateDatabase({ url, migrations });
  await opened(url, migrations, async (db) => {
    mkdirSync(join(migrations, second));
    writeFileSync(join(migrations, second, 'migration.sql'), 'SELECT 1');
    expect(await db.schema.check()).toMatchObject({ ready: true });
  });
});
