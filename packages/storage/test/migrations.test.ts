import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  MigrationsRefused,
  migrateDatabase,
  migrationState,
  openDatabase,
  schemaFloorMigration,
  schemaReadiness,
} from '../src/index.ts';
import { readMigrations } from '../src/migration-history.ts';
import { openSchemaEngine } from '../src/schema-engine.ts';
import { startTestPostgres, type TestPostgres } from './own-database.ts';

const first = '20260101000000_first';
const second = '20260102000000_second';
const third = '20260103000000_third';
const devicesAndFunction = `CREATE TABLE devices (id int); -- a semicolon; in a comment
CREATE FUNCTION one() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM 'a;b'; RETURN 1; END; $$;
`;

let postgres: TestPostgres;
let url: string;
const folders: string[] = [];

beforeAll(async () => {
  postgres = await startTestPostgres();
}, 60_000);
beforeEach(async () => {
  url = await postgres.createDatabase();
});
afterAll(async () => {
  for (const folder of folders) rmSync(folder, { recursive: true });
  await postgres?.stop();
});

function build(migrations: Record<string, string>): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'keytrail-migrations-'));
  folders.push(folder);
  writeFileSync(path.join(folder, 'migration_lock.toml'), 'provider = "postgresql"\n');
  for (const [name, sql] of Object.entries(migrations)) {
    mkdirSync(path.join(folder, name));
    writeFileSync(path.join(folder, name, 'migration.sql'), sql);
  }
  return folder;
}

const older = { [first]: devicesAndFunction, [second]: 'ALTER TABLE devices ADD COLUMN version bigint;' };
const newer = { ...older, [third]: 'CREATE TABLE sessions (id int);' };

/** What Prisma's own engine says about the same two histories. */
async function prismaDiagnosis(migrations: string) {
  const engine = await openSchemaEngine(url);
  try {
    return await engine.diagnose(readMigrations(migrations));
  } finally {
    await engine.close();
  }
}

test('an empty database is behind by every migration, and current once they are applied', async () => {
  const migrations = build(older);
  expect(await migrationState({ url, migrations })).toMatchObject({ state: 'behind', missing: [first, second] });
  expect((await prismaDiagnosis(migrations)).history).toMatchObject({
    diagnostic: 'databaseIsBehind',
    unappliedMigrationNames: [first, second],
  });
  expect(await migrateDatabase({ url, migrations })).toEqual([first, second]);
  expect(await migrationState({ url, migrations })).toEqual({
    state: 'current',
    missing: [],
    unknown: [],
    edited: [],
    failed: [],
  });
  expect(await migrateDatabase({ url, migrations })).toEqual([]);
  expect(await prismaDiagnosis(migrations)).toMatchObject({ history: null, hasMigrationsTable: true });
});

test('a build older than the database is told which migrations it does not know', async () => {
  await migrateDatabase({ url, migrations: build(newer) });
  const migrations = build(older);
  expect(await migrationState({ url, migrations })).toMatchObject({ state: 'ahead', missing: [], unknown: [third] });
  expect((await prismaDiagnosis(migrations)).history).toMatchObject({
    diagnostic: 'migrationsDirectoryIsBehind',
    unpersistedMigrationNames: [third],
  });
  await expect(migrateDatabase({ url, migrations })).rejects.toThrow(`unknown: ${third}`);
});

test('histories that parted are diverged, both parts named', async () => {
  await migrateDatabase({ url, migrations: build(newer) });
  const migrations = build({ ...older, '20260104000000_other': 'SELECT 1;' });
  const parted = { missing: ['20260104000000_other'], unknown: [third] };
  expect(await migrationState({ url, migrations })).toMatchObject({ state: 'diverged', ...parted });
  expect((await prismaDiagnosis(migrations)).history).toMatchObject({
    diagnostic: 'historiesDiverge',
    unappliedMigrationNames: parted.missing,
    unpersistedMigrationNames: parted.unknown,
  });
  await expect(migrateDatabase({ url, migrations })).rejects.toThrow(MigrationsRefused);
});

test('a migration that was edited after it was applied is named', async () => {
  await migrateDatabase({ url, migrations: build(older) });
  const migrations = build({ ...newer, [second]: 'SELECT 2;' });
  expect(await migrationState({ url, migrations })).toMatchObject({ state: 'diverged', edited: [second] });
  expect(await prismaDiagnosis(migrations)).toMatchObject({ editedMigrationNames: [second] });
});

test('a migration that fails in the middle leaves nothing of itself, and is named until it is resolved', async () => {
  const migrations = build({ [first]: 'CREATE TABLE half (id int); SELECT 1 / 0; CREATE TABLE rest (id int);' });
  await expect(migrateDatabase({ url, migrations })).rejects.toThrow(`migration ${first} failed: division by zero`);
  const db = openDatabase({ url, service: 'test', connections: 1, statementTimeoutMs: 1000 });
  expect((await db.pool.query(`SELECT to_regclass('half') AS half`)).rows).toEqual([{ half: null }]);
  await db.close();
  expect(await migrationState({ url, migrations })).toMatchObject({ state: 'diverged', failed: [first] });
  expect(await prismaDiagnosis(migrations)).toMatchObject({ failedMigrationNames: [first] });
});

test('two deployments at once apply each migration once', async () => {
  const migrations = build(newer);
  const applied = await Promise.all([migrateDatabase({ url, migrations }), migrateDatabase({ url, migrations })]);
  expect(applied.flat().sort()).toEqual([first, second, third]);
});

test('a migration that waits too long for a lock fails whole, and applies when it is tried again', async () => {
  await migrateDatabase({ url, migrations: build({ [first]: devicesAndFunction }) });
  const migrations = build(older);
  const db = openDatabase({ url, service: 'test', connections: 1, statementTimeoutMs: 1000 });
  const holder = await db.dedicatedConnection();
  await holder.query('BEGIN; SELECT FROM devices');
  const late = migrateDatabase({ url, migrations, lockTimeoutMs: 50 });
  await expect(late).rejects.toThrow(`migration ${second} failed: canceling statement due to lock timeout`);
  await holder.end();
  await db.close();
  await expect(migrateDatabase({ url, migrations })).rejects.toThrow(`failed: ${second}`);
  expect(await migrateDatabase({ url, migrations, retryFailed: true })).toEqual([second]);
});

describe('an index that is built concurrently', () => {
  const indexed = {
    [first]: devicesAndFunction,
    [second]: '-- Of what is there.\nCREATE INDEX CONCURRENTLY IF NOT EXISTS devices_by_id ON devices (id);',
  };

  /** The table, with a transaction that wrote to it and stays open until it is committed. */
  async function tableInUse() {
    await migrateDatabase({ url, migrations: build({ [first]: devicesAndFunction }) });
    const db = openDatabase({ url, service: 'test', connections: 1, statementTimeoutMs: 1000 });
    const writer = await db.dedicatedConnection();
    await writer.query('BEGIN; INSERT INTO devices VALUES (1)');
    const index = async () =>
      (await db.pool.query(`SELECT indisvalid AS valid FROM pg_index WHERE indexrelid = to_regclass('devices_by_id')`))
        .rows[0];
    return { db, writer, index };
  }

  test('keeps no writer waiting, and does not wait for those who wait to migrate', async () => {
    const { db, writer, index } = await tableInUse();
    const migrations = build(indexed);
    const building = migrateDatabase({ url, migrations });
    await vi.waitFor(async () => expect(await index()).toEqual({ valid: false }), 10_000);
    await db.pool.query('INSERT INTO devices VALUES (2)');
    const waits = Promise.withResolvers<void>();
    const late = migrateDatabase({ url, migrations, onWait: waits.resolve });
    await waits.promise;
    await writer.query('COMMIT');
    expect(await building).toEqual([second]);
    expect(await late).toEqual([]);
    expect(await index()).toEqual({ valid: true });
    await writer.end();
    await db.close();
  });

  test('and was not finished is built anew when it is tried again', async () => {
    const { db, writer, index } = await tableInUse();
    const migrations = build(indexed);
    await expect(migrateDatabase({ url, migrations, lockTimeoutMs: 50 })).rejects.toThrow('due to lock timeout');
    expect(await index()).toEqual({ valid: false });
    await writer.query('COMMIT');
    expect(await migrateDatabase({ url, migrations, retryFailed: true })).toEqual([second]);
    expect(await index()).toEqual({ valid: true });
    await writer.end();
    await db.close();
  });
});

describe('readiness', () => {
  const floored = { ...older, [first]: devicesAndFunction + schemaFloorMigration };

  async function readiness(migrations: string) {
    const db = openDatabase({ url, service: 'test', connections: 1, statementTimeoutMs: 1000 });
    try {
      return await schemaReadiness((asked) => db.asItIs.query(asked, []), migrations);
    } finally {
      await db.close();
    }
  }

  test('is refused to a build whose database is behind', async () => {
    const migrations = build(floored);
    expect(await readiness(migrations)).toMatchObject({ ready: false, reason: 'SCHEMA_BEHIND' });
    await migrateDatabase({ url, migrations });
    expect(await readiness(migrations)).toMatchObject({ ready: true });
    const answer = await readiness(build({ ...floored, [third]: 'SELECT 1;' }));
    expect(answer).toMatchObject({ ready: false, reason: 'SCHEMA_BEHIND' });
    expect(answer.why).toContain(third);
  });

  test('is kept by an older build while the floor allows it', async () => {
    await migrateDatabase({ url, migrations: build({ ...floored, [third]: 'CREATE TABLE expanded (id int);' }) });
    const answer = await readiness(build(floored));
    expect(answer).toMatchObject({ ready: true, floor: '' });
    expect(answer.why).toContain(third);
  });

  test('is refused to an older build once a contracting migration raised the floor', async () => {
    const contracting = `ALTER TABLE devices DROP COLUMN version; UPDATE schema_floor SET migration = '${third}';`;
    await migrateDatabase({ url, migrations: build({ ...floored, [third]: contracting }) });
    expect(await readiness(build(floored))).toMatchObject({ ready: false, reason: 'BUILD_BEHIND', floor: third });
  });

  test('is kept by an older build while a newer migration is under way, and when that one failed', async () => {
    await migrateDatabase({ url, migrations: build(floored) });
    const failing = build({ ...floored, [third]: 'SELECT 1 / 0;' });
    await expect(migrateDatabase({ url, migrations: failing })).rejects.toThrow(third);
    const answer = await readiness(build(floored));
    expect(answer).toMatchObject({ ready: true, state: { state: 'ahead', unknown: [], failed: [third] } });
    expect(answer.why).toContain(third);
    const parted = build({ ...floored, '20260104000000_other': 'SELECT 1;' });
    expect(await readiness(parted)).toMatchObject({ ready: false, state: { state: 'diverged' } });
    expect(await readiness(failing)).toMatchObject({
      ready: false,
      reason: 'SCHEMA_BEHIND',
      state: { state: 'diverged' },
      metadata: { failed: third },
    });
  });

  test('is refused to an older build where no floor is set', async () => {
    await migrateDatabase({ url, migrations: build(newer) });
    expect(await readiness(build(older))).toMatchObject({ ready: false, reason: 'BUILD_BEHIND' });
  });
});
