import { randomUUID } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fromBinary } from '@bufbuild/protobuf';
import { MessageAddedSchema } from '@keytrail/contracts';
import { startProcess } from '@keytrail/local';
import { type Database, type DedicatedConnection, statement } from '@keytrail/storage';
import { jetstreamManager } from '@nats-io/jetstream';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import {
  addEvent,
  type ConsumerType,
  type EventBus,
  largestEventBytes,
  messageAdded,
  onInTransaction,
} from '../src/index.ts';
import { partitionOf } from '../src/outbox.ts';
import { readOutboxLag } from '../src/outbox-lag.ts';
import { collect, type EventServers, startEventServers } from './event-servers.ts';

const lockConversation = statement(
  'test_conversation_lock',
  'UPDATE conversations SET n = n + 1 WHERE id = $1 RETURNING n',
);
const left = statement('test_outbox_left', 'SELECT count(*)::int AS count FROM outbox');
const applyEffect = statement('test_effect_apply', 'INSERT INTO effects (event_id) VALUES ($1)');

let servers: EventServers;
let bus: EventBus;

beforeAll(async () => {
  servers = await startEventServers();
}, 120_000);
beforeEach(async () => {
  await servers.reset();
  bus = await servers.connect();
});
afterEach(() => servers.settle());
afterAll(() => servers?.stop());

const conversations = `CREATE TABLE conversations (id text PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
  CREATE TABLE effects (event_id text NOT NULL);`;

async function withConversations(count: number): Promise<{ db: Database; ids: string[] }> {
  const db = await servers.openDatabase(conversations, 20);
  const ids = Array.from({ length: count }, () => randomUUID());
  await db.pool.query('INSERT INTO conversations (id) SELECT unnest($1::text[])', [ids]);
  return { db, ids };
}

/** Takes the next number of a conversation under its row lock, and tells it in an event. */
function append(db: Database, conversationId: string, then?: () => Promise<void>): Promise<void> {
  return db.transaction(async (tx) => {
    const [row] = await tx.query<{ n: bigint }>(lockConversation, [conversationId]);
    await addEvent(tx, messageAdded, { conversationId, sequence: row?.n ?? 0n }, { aggregate: conversationId });
    await then?.();
  });
}

/** The messages of the stream, in its order. */
async function stored(): Promise<{ id: string; conversationId: string; sequence: bigint }[]> {
  const manager = await jetstreamManager(bus.connection);
  const { state } = await manager.streams.info('CONVERSATION');
  const messages = [];
  for (let seq = 1; seq <= state.last_seq; seq++) {
    const message = await manager.streams.getMessage('CONVERSATION', { seq });
    if (!message) continue;
    const { conversationId, sequence } = fromBinary(MessageAddedSchema, message.data);
    messages.push({ id: message.header.get('Nats-Msg-Id'), conversationId, sequence });
  }
  return messages;
}

async function outboxEmpties(db: Database): Promise<void> {
  await vi.waitFor(async () => expect(await db.query(left, [])).toEqual([{ count: 0 }]), {
    timeout: 30_000,
    interval: 20,
  });
}

function expectOrder(messages: { conversationId: string; sequence: bigint }[], ids: string[], each: number): void {
  const wanted = Array.from({ length: each }, (_, i) => BigInt(i + 1));
  for (const id of ids) {
    const got = messages.filter(({ conversationId }) => conversationId === id).map(({ sequence }) => sequence);
    expect(got).toEqual(wanted);
  }
}

test('an event is published once its transaction commits', async () => {
  const { db, ids } = await withConversations(1);
  servers.relay(db, bus, { pollMs: 60_000 });
  await append(db, ids[0] as string);
  await outboxEmpties(db);
  expect(await stored()).toMatchObject([{ conversationId: ids[0], sequence: 1n }]);
});

test('a transaction that rolls back publishes nothing', async () => {
  const { db, ids } = await withConversations(2);
  const [kept, undone] = ids as [string, string];
  servers.relay(db, bus);
  const change = async () => {
    throw new Error('changed my mind');
  };
  await expect(append(db, undone, change)).rejects.toThrow('changed my mind');
  await append(db, kept);
  await outboxEmpties(db);
  expect((await stored()).map(({ conversationId }) => conversationId)).toEqual([kept]);
});

test('an event too large for NATS is refused at the write', async () => {
  const { db } = await withConversations(1);
  const conversationId = 'x'.repeat(largestEventBytes);
  await expect(
    db.transaction((tx) => addEvent(tx, messageAdded, { conversationId }, { aggregate: 'large' })),
  ).rejects.toThrow('outbox_payload_check');
});

test('two relays and concurrent writers keep the order of each conversation', async () => {
  const { db, ids } = await withConversations(12);
  servers.relay(db, bus, { pollMs: 50 });
  servers.relay(db, await servers.connect(), { pollMs: 50 });
  await Promise.all(
    ids.flatMap((id) =>
      [1, 2, 3].map(async () => {
        for (let i = 0; i < 10; i++) await append(db, id);
      }),
    ),
  );
  await outboxEmpties(db);
  const messages = await stored();
  expect(messages).toHaveLength(12 * 30);
  expectOrder(messages, ids, 30);
}, 60_000);

test('a relay that joins takes half, and one that stops leaves its part to the other, while writes go on', async () => {
  const { db, ids } = await withConversations(16);
  const holders = async () => {
    const { rows } = await db.pool.query(
      `SELECT count(*)::int AS held FROM pg_locks WHERE locktype = 'advisory' AND objid < 16 AND objsubid = 2
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) GROUP BY pid ORDER BY 1`,
    );
    return rows.map(({ held }) => held);
  };
  // Only word of mouth between relays moves partitions here.
  const options = { pollMs: 60_000, rebalanceMs: 60_000 };
  const first = servers.relay(db, bus, options);
  await vi.waitFor(async () => expect(await holders()).toEqual([16]), 10_000);
  let writing = true;
  const writers = ids.map(async (id) => {
    let written = 0;
    while (writing) {
      await append(db, id);
      written++;
    }
    return written;
  });
  servers.relay(db, await servers.connect(), options);
  await vi.waitFor(async () => expect(await holders()).toEqual([8, 8]), 10_000);
  await first.stop();
  await vi.waitFor(async () => expect(await holders()).toEqual([16]), 10_000);
  writing = false;
  const written = await Promise.all(writers);
  await outboxEmpties(db);
  const messages = await stored();
  ids.forEach((id, i) => {
    expectOrder(messages, [id], written[i] as number);
  });
}, 60_000);

test('a commit in one process is published at once by the relay that holds its partition in another', async () => {
  const { db, ids } = await withConversations(1);
  const conversationId = ids[0] as string;
  servers.relay(db, bus, { pollMs: 60_000 });
  const writer = servers.relay(await sameDatabase(db), await servers.connect(), { pollMs: 60_000 });
  await append(db, conversationId);
  await outboxEmpties(db);
  await writer.stop();
});

async function sameDatabase(db: Database): Promise<Database> {
  const { openDatabase } = await import('@keytrail/storage');
  const url = (db.pool.options as { connectionString?: string }).connectionString as string;
  const other = openDatabase({ url, service: 'test', connections: 4, statementTimeoutMs: 5000 });
  cleanups.push(() => other.close());
  return other;
}
const cleanups: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const clean of cleanups.splice(0)) await clean();
});

test('while NATS is away writes go on, and when it is back nothing is lost and the order holds', async () => {
  const { db, ids } = await withConversations(4);
  servers.relay(db, bus);
  const appendToAll = async (times: number) => {
    for (let i = 0; i < times; i++) await Promise.all(ids.map((id) => append(db, id)));
  };
  await appendToAll(5);
  await servers.nats.kill('SIGKILL');
  await appendToAll(20);
  await servers.nats.restart?.();
  await appendToAll(5);
  await outboxEmpties(db);
  const messages = await stored();
  expectOrder([...new Map(messages.map((message) => [message.id, message])).values()], ids, 30);
}, 60_000);

test('how many events wait, and since when, is known while nothing relays', async () => {
  const { db, ids } = await withConversations(2);
  expect(await readOutboxLag(db)).toEqual({ pending: 0, oldestAgeMs: 0 });
  for (const id of ids) await append(db, id);
  await db.pool.query(
    `UPDATE outbox SET created_at = created_at - interval '1 hour' WHERE seq = (SELECT min(seq) FROM outbox)`,
  );
  const { pending, oldestAgeMs } = await readOutboxLag(db);
  expect(pending).toBe(2);
  expect(oldestAgeMs).toBeGreaterThan(3_600_000);
  servers.relay(db, bus);
  await outboxEmpties(db);
  expect((await readOutboxLag(db)).pending).toBe(0);
});

test('what is written gets out until NATS is away, and again once the backlog is published', async () => {
  const { db, ids } = await withConversations(1);
  const relay = servers.relay(db, bus, { pollMs: 20 });
  expect(relay.isFlowing()).toBe(true);
  await servers.nats.kill('SIGKILL');
  await vi.waitFor(() => expect(relay.isFlowing()).toBe(false), 10_000);
  await append(db, ids[0] as string);
  await servers.nats.restart?.();
  await vi.waitFor(() => expect(relay.isFlowing()).toBe(true), 10_000);
  expect((await readOutboxLag(db)).pending).toBe(0);
});

test('a relay that is killed in the middle of its backlog leaves the rest to the other, in order', async () => {
  const { db, ids } = await withConversations(6);
  for (let n = 0; n < 50; n++) await Promise.all(ids.map((id) => append(db, id)));
  // Its first batch is published and not yet deleted when it is killed.
  const keeper = await holdDeletions(db);
  const doomed = await relayProcess(db);
  await vi.waitFor(async () => expect((await db.pool.query(deletingText)).rowCount).toBe(1), 20_000);
  expect((await stored()).length).toBeLessThan(300);
  servers.relay(db, bus, { pollMs: 50, rebalanceMs: 100 });
  await doomed.kill('SIGKILL');
  await keeper.end();
  await outboxEmpties(db);
  const messages = await stored();
  expect(messages.length).toBe(300);
  expectOrder(messages, ids, 50);
}, 60_000);

/** Deletions from the outbox wait until the connection ends, so that a relay can be killed right before one. */
async function holdDeletions(db: Database): Promise<DedicatedConnection> {
  const keeper = await db.dedicatedConnection();
  await keeper.query('SELECT pg_advisory_lock(42)');
  await db.pool.query(`CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock(42); RETURN OLD; END; $$;
    CREATE TRIGGER wait BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION wait()`);
  return keeper;
}

/** The relays that wait there. */
const deletingText = `SELECT pid FROM pg_stat_activity WHERE query LIKE 'DELETE FROM outbox%' AND wait_event_type = 'Lock'
  AND datname = current_database()`;

/** A relay in a process of its own. */
function relayProcess(db: Database) {
  const url = (db.pool.options as { connectionString?: string }).connectionString as string;
  return startProcess({
    name: 'relay',
    args: ['packages/events/test/relay-process.ts'],
    logFile: join(tmpdir(), `keytrail-relay-${randomUUID()}.log`),
    env: { KEYTRAIL_ENVIRONMENT: 'development', KEYTRAIL_DATABASE_URL: url, KEYTRAIL_NATS_URL: servers.nats.url },
  });
}

test('a NATS that freezes until publications time out loses and reorders nothing', async () => {
  const { db, ids } = await withConversations(4);
  const gaveUp = Promise.withResolvers<void>();
  const log = servers.log.child({});
  log.warn = () => gaveUp.resolve();
  servers.relay(db, bus, { log });
  await Promise.all(ids.map((id) => append(db, id)));
  const writes = Promise.all(
    ids.map(async (id) => {
      for (let i = 0; i < 29; i++) await append(db, id);
    }),
  );
  await servers.nats.kill('SIGSTOP');
  await writes;
  await gaveUp.promise;
  await servers.nats.kill('SIGCONT');
  await outboxEmpties(db);
  expectOrder([...new Map((await stored()).map((message) => [message.id, message])).values()], ids, 30);
}, 60_000);

test('a database without an outbox is tried ever more seldom and told of sparingly, and relayed once it has one', async () => {
  const { db, ids } = await withConversations(1);
  await db.pool.query('ALTER TABLE outbox RENAME TO not_there_yet');
  const tries = vi.spyOn(db, 'dedicatedConnection');
  const log = servers.log.child({});
  const warn = vi.spyOn(log, 'warn');
  const waits = vi.spyOn(globalThis, 'setTimeout');
  servers.relay(db, bus, { log, pollMs: 60_000 });
  await vi.waitFor(() => expect(tries.mock.calls.length).toBeGreaterThanOrEqual(5), 20_000);
  const backoffs = waits.mock.calls.map(([, ms]) => ms).filter((ms) => [100, 200, 400, 800].includes(Number(ms)));
  waits.mockRestore();
  expect(backoffs).toEqual([100, 200, 400, 800]);
  expect(warn.mock.calls.length).toBeLessThan(3);
  await db.pool.query('ALTER TABLE not_there_yet RENAME TO outbox');
  await append(db, ids[0] as string);
  await outboxEmpties(db);
  expect(await stored()).toHaveLength(1);
}, 60_000);

test('a relay that dies between publishing and deleting publishes again, with one effect', async () => {
  const { db, ids } = await withConversations(1);
  const conversationId = ids[0] as string;
  const keeper = await holdDeletions(db);
  const handled = collect<string>();
  await servers.consume({
    bus,
    db,
    consumer: await consumerOf('test-effects'),
    handlers: onInTransaction(messageAdded, async (_, tx, event) => {
      await tx.query(applyEffect, [event.id]);
      handled.add(event.id);
    }),
  });
  servers.relay(db, bus);
  await append(db, conversationId);
  await handled.reaches(1);
  await vi.waitFor(async () => expect((await db.pool.query(deletingText)).rowCount).toBe(1), 10_000);
  await db.pool.query(`SELECT pg_terminate_backend(pid) FROM (${deletingText}) AS relay`);
  await vi.waitFor(async () => expect((await db.pool.query(deletingText)).rowCount).toBe(1), 10_000);
  await keeper.end();
  await outboxEmpties(db);
  // The second publication carried the same id, so that NATS dropped it.
  expect(await stored()).toHaveLength(1);
  expect((await db.pool.query('SELECT * FROM effects')).rowCount).toBe(1);
}, 60_000);

test('a second publication that NATS no longer recognizes has no second effect', async () => {
  const db = await servers.openDatabase(conversations);
  const manager = await jetstreamManager(bus.connection);
  await manager.streams.update('CONVERSATION', { duplicate_window: 100_000_000 });
  const consumer = await consumerOf('test-effects');
  await servers.consume({
    bus,
    db,
    consumer,
    handlers: onInTransaction(messageAdded, async (_, tx, event) => {
      await tx.query(applyEffect, [event.id]);
    }),
  });
  const id = randomUUID();
  let storedTwice = 0;
  await vi.waitFor(
    async () => {
      const { duplicate } = await bus.jetstream.publish(messageAdded.subject, new Uint8Array(), { msgID: id });
      if (!duplicate) storedTwice++;
      expect(storedTwice).toBe(2);
    },
    { timeout: 10_000, interval: 50 },
  );
  await vi.waitFor(async () => {
    expect((await manager.consumers.info('CONVERSATION', consumer.name)).ack_floor.stream_seq).toBe(2);
  }, 10_000);
  expect((await db.pool.query('SELECT * FROM effects')).rows).toEqual([{ event_id: id }]);
}, 30_000);

/** A consumer besides those of the catalogue. */
async function consumerOf(name: string): Promise<ConsumerType> {
  const manager = await jetstreamManager(bus.connection);
  await manager.consumers.add('CONVERSATION', {
    durable_name: name,
    ack_policy: 'explicit',
    filter_subjects: [messageAdded.subject],
  });
  return { name, describe: 'for a test', events: [messageAdded] };
}

test('aggregates spread over all partitions', () => {
  const hit = new Set(Array.from({ length: 500 }, () => partitionOf(randomUUID())));
  expect([...hit].sort((a, b) => a - b)).toEqual(Array.from({ length: 16 }, (_, i) => i));
  expect(partitionOf('c0ffee')).toBe(partitionOf('c0ffee'));
});
