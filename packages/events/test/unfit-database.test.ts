import { randomUUID } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Database, openDatabase, statement } from '@keytrail/storage';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { addEvent, consumers, type EventBus, keyRequestDue, on, startRounds } from '../src/index.ts';
import { type EventServers, startEventServers } from './event-servers.ts';

const history = `CREATE TABLE _prisma_migrations (
  migration_name text, checksum text, finished_at timestamptz, rolled_back_at timestamptz, started_at timestamptz DEFAULT now());`;
const known = '20260101000000_known';
const unknown = '20260102000000_unknown';
const relays = `SELECT count(*)::int AS relays FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = 1000
  AND classid = ${0x6b74_6f62} AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`;
const look = statement('unfit_look', 'SELECT 1');

let servers: EventServers;
let bus: EventBus;
/** Of a build that fits. */
let db: Database;
/** Of a build that stops to fit when it is overtaken. */
let older: Database;
let migrations: string;

beforeAll(async () => {
  servers = await startEventServers();
  migrations = mkdtempSync(join(tmpdir(), 'keytrail-unfit-'));
  mkdirSync(join(migrations, known));
  writeFileSync(join(migrations, known, 'migration.sql'), '');
}, 120_000);
beforeEach(async () => {
  await servers.reset();
  bus = await servers.connect();
  db = await servers.openDatabase(history);
  const empty = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';
  await db.pool.query('INSERT INTO _prisma_migrations VALUES ($1, $2, now())', [known, empty]);
  const url = db.pool.options.connectionString as string;
  older = openDatabase({ url, service: 'test', connections: 4, statementTimeoutMs: 5000, migrations });
  await older.schema.check();
});
afterEach(async () => {
  await servers.settle();
  await older.close();
});
afterAll(async () => {
  rmSync(migrations, { recursive: true });
  await servers?.stop();
});

async function overtake(): Promise<void> {
  await db.pool.query('INSERT INTO _prisma_migrations VALUES ($1, $2, now())', [unknown, 'x']);
  expect((await older.schema.check()).ready).toBe(false);
}

async function fitAgain(): Promise<void> {
  await db.pool.query('DELETE FROM _prisma_migrations WHERE migration_name = $1', [unknown]);
  expect((await older.schema.check()).ready).toBe(true);
}

async function addEvents(count: number): Promise<void> {
  for (const keyRequestId of Array.from({ length: count }, () => randomUUID()))
    await db.transaction((tx) =>
      addEvent(tx, keyRequestDue, { keyRequestId, attempt: 1 }, { aggregate: keyRequestId }),
    );
}

test('a relay whose build was overtaken frees its partitions for one that fits, and takes its share again afterwards', async () => {
  const relay = servers.relay(older, bus, { pollMs: 20, rebalanceMs: 50 });
  const count = async () => (await db.pool.query<{ relays: number }>(relays)).rows[0]?.relays;
  await vi.waitFor(async () => expect(await count()).toBe(1), { timeout: 10_000 });
  await overtake();
  expect(relay.isFlowing()).toBe(false);
  await vi.waitFor(async () => expect(await count()).toBe(0), { timeout: 5_000 });
  await addEvents(8);
  servers.relay(db, bus, { pollMs: 20, rebalanceMs: 50 });
  const waiting = async () => (await db.pool.query('SELECT FROM outbox')).rowCount;
  await vi.waitFor(async () => expect(await waiting()).toBe(0), { timeout: 10_000 });
  expect(await count()).toBe(1);
  await fitAgain();
  await vi.waitFor(async () => expect(await count()).toBe(2), { timeout: 10_000 });
});

test('a consumer whose build was overtaken leaves the events to one that fits, and takes its share again afterwards', async () => {
  const handled: string[] = [];
  const consume = (by: string, on_: Database) =>
    servers.consume({
      bus,
      db: on_,
      consumer: consumers.sessionDispatcher,
      handlers: on(keyRequestDue, async () => {
        handled.push(by);
      }),
    });
  await consume('older', older);
  servers.relay(db, bus, { pollMs: 20 });
  await overtake();
  await consume('newer', db);
  await addEvents(40);
  await vi.waitFor(() => expect(handled).toHaveLength(40), { timeout: 20_000 });
  expect(new Set(handled)).toEqual(new Set(['newer']));
  await fitAgain();
  await vi.waitFor(
    async () => {
      await addEvents(4);
      expect(handled).toContain('older');
    },
    { timeout: 20_000, interval: 100 },
  );
});

test('a round that finds its database unfit waits for nothing but that, however long its interval is', async () => {
  let rounds = 0;
  await overtake();
  const running = startRounds({
    what: 'the test of rounds',
    everyMs: 3_600_000,
    log: servers.log,
    async round() {
      await older.query(look, []);
      rounds += 1;
      return false;
    },
  });
  try {
    await expect(older.query(look, [])).rejects.toThrow(unknown);
    expect(rounds).toBe(0);
    await fitAgain();
    await vi.waitFor(() => expect(rounds).toBe(1), { timeout: 10_000 });
  } finally {
    await running.stop();
  }
});
