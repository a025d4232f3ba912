import { randomUUID } from 'node:crypto';
import { type Database, statement } from '@keytrail/storage';
import { currentTraceId, withSpan } from '@keytrail/telemetry';
import { jetstreamManager } from '@nats-io/jetstream';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  addEvent,
  consumers,
  type DeliveredEvent,
  type EventBus,
  keyRequestDue,
  notificationRequested,
  on,
  onInTransaction,
  publishHint,
} from '../src/index.ts';
import { collect, type EventServers, startEventServers } from './event-servers.ts';

const addEffect = statement('test_consumer_effect', 'INSERT INTO effects (event_id) VALUES ($1)');
const consumer = consumers.sessionDispatcher;

let servers: EventServers;
let bus: EventBus;
let db: Database;

beforeAll(async () => {
  servers = await startEventServers();
}, 120_000);
beforeEach(async () => {
  await servers.reset();
  bus = await servers.connect();
  db = await servers.openDatabase('CREATE TABLE effects (event_id text NOT NULL)');
});
afterEach(() => servers.settle());
afterAll(() => servers?.stop());

const retryDelayMs = () => 1;

function addDue(keyRequestId: string, id?: string, attempt = 1): Promise<void> {
  return db.transaction((tx) =>
    addEvent(tx, keyRequestDue, { keyRequestId, attempt }, { aggregate: keyRequestId, ...(id && { id }) }),
  );
}

async function effects(): Promise<string[]> {
  return (await db.pool.query<{ event_id: string }>('SELECT event_id FROM effects')).rows.map((row) => row.event_id);
}

async function deadLetters() {
  return (await db.pool.query('SELECT consumer, subject, event_id, payload, reason FROM dead_letters')).rows;
}

/** Resolves once every event delivered so far is acknowledged or terminated. */
async function settled(stream: string, messages: number, name: string = consumer.name): Promise<void> {
  const manager = await jetstreamManager(bus.connection);
  await vi.waitFor(
    async () => {
      const info = await manager.consumers.info(stream, name);
      expect(info.ack_floor.stream_seq).toBe(messages);
    },
    { timeout: 10_000, interval: 20 },
  );
}

test('a handler gets the message, and its effect is committed with the inbox row', async () => {
  const got = collect<{ keyRequestId: string; attempt: number; event: DeliveredEvent }>();
  await servers.consume({
    bus,
    db,
    consumer,
    handlers: onInTransaction(keyRequestDue, async ({ keyRequestId, attempt }, tx, event) => {
      await tx.query(addEffect, [event.id]);
      got.add({ keyRequestId, attempt, event });
    }),
  });
  servers.relay(db, bus);
  await addDue('request-1', 'event-1', 3);
  const [first] = await got.reaches(1);
  expect(first).toMatchObject({ keyRequestId: 'request-1', attempt: 3 });
  expect(first?.event).toMatchObject({
    id: 'event-1',
    delivery: 1,
    redelivered: false,
    subject: keyRequestDue.subject,
  });
  await settled('SESSION', 1);
  expect(await effects()).toEqual(['event-1']);
  const inbox = await db.pool.query('SELECT consumer, event_id FROM inbox');
  expect(inbox.rows).toEqual([{ consumer: 'session-dispatcher', event_id: 'event-1' }]);
});

test('a handler that fails leaves no effect, and has one when the event comes again', async () => {
  const deliveries = collect<DeliveredEvent>();
  await servers.consume({
    bus,
    db,
    consumer,
    retryDelayMs,
    handlers: onInTransaction(keyRequestDue, async (_, tx, event) => {
      await tx.query(addEffect, [event.id]);
      deliveries.add(event);
      if (event.delivery < 3) throw new Error('not yet');
    }),
  });
  servers.relay(db, bus);
  await addDue('request-1', 'event-1');
  const got = await deliveries.reaches(3);
  await settled('SESSION', 1);
  expect(got.map(({ delivery, redelivered }) => [delivery, redelivered])).toEqual([
    [1, false],
    [2, true],
    [3, true],
  ]);
  expect(await effects()).toEqual(['event-1']);
});

test('events of one aggregate are handled one after another, those of others meanwhile', async () => {
  const order: string[] = [];
  const done = collect<string>();
  const release = Promise.withResolvers<void>();
  await servers.consume({
    bus,
    consumer,
    handlers: on(keyRequestDue, async ({ keyRequestId, attempt }) => {
      if (keyRequestId === 'slow' && attempt === 1) await release.promise;
      order.push(`${keyRequestId} ${attempt}`);
      done.add(keyRequestId);
      if (keyRequestId === 'quick') release.resolve();
    }),
  });
  servers.relay(db, bus);
  for (const attempt of [1, 2, 3]) await addDue('slow', undefined, attempt);
  await addDue('quick');
  await done.reaches(4);
  expect(order).toEqual(['quick 1', 'slow 1', 'slow 2', 'slow 3']);
});

test('no more events are handled at once than allowed', async () => {
  let running = 0;
  let most = 0;
  const done = collect<number>();
  await servers.consume({
    bus,
    consumer,
    concurrency: 3,
    handlers: on(keyRequestDue, async () => {
      most = Math.max(most, ++running);
      await db.pool.query('SELECT 1');
      running--;
      done.add(1);
    }),
  });
  for (let i = 0; i < 40; i++) await publishHint(bus, keyRequestDue, { keyRequestId: randomUUID() });
  await done.reaches(40);
  expect(most).toBe(3);
});

test('one consumer receives from every stream that carries its events', async () => {
  const got = collect<string>();
  const add = async (_: unknown, { subject }: DeliveredEvent) => got.add(subject);
  await servers.consume({
    bus,
    consumer: consumers.presenceNotifier,
    handlers: Object.assign({}, ...Object.values(notificationRequested).map((type) => on(type, add))),
  });
  for (const type of Object.values(notificationRequested)) await publishHint(bus, type, { userIds: ['ada'] });
  await got.reaches(3);
  expect(got.items.toSorted()).toEqual([
    'keytrail.conversation.v1.notification_requested',
    'keytrail.identitykeys.v1.notification_requested',
    'keytrail.session.v1.notification_requested',
  ]);
});

test('two replicas share the events, and one that stops loses none', async () => {
  const got = collect<string>();
  const handlers = onInTransaction(keyRequestDue, async (_, tx, { id }) => {
    await tx.query(addEffect, [id]);
    tx.afterCommit(() => got.add(id));
  });
  const first = await servers.consume({ bus, db, consumer, concurrency: 2, handlers });
  await servers.consume({ bus: await servers.connect(), db, consumer, concurrency: 2, handlers });
  servers.relay(db, bus);
  const ids = Array.from({ length: 60 }, () => randomUUID());
  for (const id of ids.slice(0, 30)) await addDue(id, id);
  await first.stop();
  for (const id of ids.slice(30)) await addDue(id, id);
  await got.reaches(60);
  expect((await effects()).toSorted()).toEqual(ids.toSorted());
}, 60_000);

test('a consumer whose state NATS lost goes on when it is set up again', async () => {
  const got = collect<string>();
  await servers.consume({
    bus,
    consumer,
    handlers: on(keyRequestDue, async ({ keyRequestId }) => got.add(keyRequestId)),
  });
  const manager = await jetstreamManager(bus.connection);
  await manager.streams.delete('SESSION');
  servers.relay(db, bus);
  await addDue('after the loss');
  await got.reaches(1);
}, 60_000);

test('the handler of a hint needs no database', async () => {
  const got = collect<string>();
  await servers.consume({
    bus,
    consumer,
    handlers: on(keyRequestDue, async ({ keyRequestId }) => got.add(keyRequestId)),
  });
  await publishHint(bus, keyRequestDue, { keyRequestId: 'hint' });
  expect(await got.reaches(1)).toEqual(['hint']);
});

test('a hint that cannot be published fails nobody', async () => {
  await (await jetstreamManager(bus.connection)).streams.delete('SESSION');
  await publishHint(bus, keyRequestDue, { keyRequestId: 'nobody stores this' });
});

test('a transaction without a database is refused at the start', async () => {
  const handlers = onInTransaction(keyRequestDue, async () => {});
  await expect(servers.consume({ bus, consumer, handlers })).rejects.toThrow('session-dispatcher has no database');
});

describe('dead letters', () => {
  test('keep an event that is never handled, with the reason', async () => {
    let deliveries = 0;
    await servers.consume({
      bus,
      db,
      consumer,
      maxDeliveries: 3,
      retryDelayMs,
      handlers: onInTransaction(keyRequestDue, async () => {
        deliveries++;
        throw new Error('always');
      }),
    });
    servers.relay(db, bus);
    await addDue('request-1', 'event-1');
    await settled('SESSION', 1);
    expect(deliveries).toBe(3);
    expect(await deadLetters()).toMatchObject([
      { consumer: 'session-dispatcher', subject: keyRequestDue.subject, event_id: 'event-1', reason: 'Error: always' },
    ]);
  });

  test('keep bytes that are not what the subject says, and subjects that nothing here handles', async () => {
    await servers.consume({
      bus,
      db,
      consumer,
      maxDeliveries: 2,
      retryDelayMs,
      handlers: on(keyRequestDue, async () => {}),
    });
    await bus.jetstream.publish(keyRequestDue.subject, new Uint8Array([0xff, 0xff]), { msgID: 'broken' });
    await settled('SESSION', 1);
    await servers.consume({
      bus,
      db,
      consumer: consumers.presenceNotifier,
      maxDeliveries: 2,
      retryDelayMs,
      handlers: {},
    });
    await publishHint(bus, notificationRequested.session, { userIds: ['ada'] });
    await settled('SESSION', 2, 'presence-notifier');
    const [broken, unhandled] = await deadLetters();
    expect(broken).toMatchObject({ event_id: 'broken', payload: Buffer.from([0xff, 0xff]) });
    expect(broken.reason).toContain('UnknownEvent: the bytes on keytrail.session.v1.key_request_due');
    expect(unhandled.reason).toBe('UnknownEvent: nothing here handles keytrail.session.v1.notification_requested');
  });

  test('an event whose dead letter cannot be kept comes again', async () => {
    await db.pool.query('ALTER TABLE dead_letters RENAME TO away');
    const deliveries = collect<number>();
    await servers.consume({
      bus,
      db,
      consumer,
      maxDeliveries: 1,
      retryDelayMs,
      handlers: onInTransaction(keyRequestDue, async (_, _tx, { delivery }) => {
        deliveries.add(delivery);
        throw new Error('always');
      }),
    });
    servers.relay(db, bus);
    await addDue('request-1', 'event-1');
    await deliveries.reaches(3);
    await db.pool.query('ALTER TABLE away RENAME TO dead_letters');
    await settled('SESSION', 1);
    expect(await deadLetters()).toHaveLength(1);
  });
});

describe('the trace', () => {
  async function spansNamed(name: string, count: number) {
    return vi.waitFor(async () => {
      const found = (await servers.spans.spans()).filter((span) => span.name === name);
      expect(found.length).toBeGreaterThanOrEqual(count);
      return found;
    }, 10_000);
  }

  const attributeOf = (span: { attributes: readonly { key: string; value: Record<string, unknown> }[] }, key: string) =>
    Object.values(span.attributes.find((attribute) => attribute.key === key)?.value ?? {})[0];

  test('of the write goes on through the outbox and NATS into the handler', async () => {
    const traces = collect<string>();
    await servers.consume({ bus, consumer, handlers: on(keyRequestDue, async () => traces.add(currentTraceId())) });
    servers.relay(db, bus);
    const id = randomUUID();
    const written = await withSpan('request', {}, async () => {
      await addDue('request-1', id);
      return currentTraceId();
    });
    expect(await traces.reaches(1)).toEqual([written]);
    const processed = (await spansNamed(`process ${keyRequestDue.subject}`, 1)).find(
      ({ traceId }) => traceId === written,
    );
    const published = (await spansNamed(`publish ${keyRequestDue.subject}`, 1)).find(
      ({ traceId }) => traceId === written,
    );
    expect(processed?.parentSpanId).toBe(published?.spanId);
    expect(published?.parentSpanId).toBeTruthy();
    expect(attributeOf(published as never, 'messaging.message.id')).toBe(id);
    expect(attributeOf(published as never, 'keytrail.outbox.wait_ms')).toBeDefined();
  });

  test('tells how long the event waited in the outbox, as a hop between the write and the publication', async () => {
    const written = await withSpan('request', {}, async () => {
      await addDue('request-1');
      return currentTraceId();
    });
    // No relay has run: the row is as one that waited for NATS.
    await db.pool.query("UPDATE outbox SET created_at = created_at - interval '20 s'");
    servers.relay(db, bus);
    const named = async (name: string) =>
      (await servers.spans.spans()).filter((span) => span.name === name && span.traceId === written);
    await vi.waitFor(async () => expect(await named('outbox wait')).toHaveLength(1), 10_000);
    const [waited] = await named('outbox wait');
    const [published] = await named(`publish ${keyRequestDue.subject}`);
    expect(waited?.parentSpanId).toBe(published?.parentSpanId);
    expect(waited?.parentSpanId).toBeTruthy();
    const ms = (nanoseconds?: string) => Number(BigInt(nanoseconds ?? 0) / 1_000_000n);
    const waitedMs = ms(waited?.endTimeUnixNano) - ms(waited?.startTimeUnixNano);
    expect(waitedMs).toBeGreaterThanOrEqual(20_000);
    // Up to the publication, and as the attribute says.
    expect(ms(waited?.endTimeUnixNano)).toBeLessThanOrEqual(ms(published?.startTimeUnixNano) + 6);
    expect(Number(attributeOf(published as never, 'keytrail.outbox.wait_ms'))).toBeCloseTo(waitedMs, -1);
  });

  test('of a redelivery is a new one that links to the write', async () => {
    const traces = collect<string>();
    await servers.consume({
      bus,
      consumer,
      retryDelayMs,
      handlers: on(keyRequestDue, async (_, { delivery }) => {
        traces.add(currentTraceId());
        if (delivery === 1) throw new Error('once');
      }),
    });
    servers.relay(db, bus);
    const written = await withSpan('request', {}, async () => {
      await addDue('request-1');
      return currentTraceId();
    });
    const [first, second] = await traces.reaches(2);
    expect(first).toBe(written);
    expect(second).not.toBe(written);
    await settled('SESSION', 1);
    const spans = await spansNamed(`process ${keyRequestDue.subject}`, 1);
    const again = await vi.waitFor(async () => {
      const found = (await servers.spans.spans()).find(({ traceId }) => traceId === second);
      expect(found).toBeDefined();
      return found;
    }, 10_000);
    expect(again?.links?.map(({ traceId }) => traceId)).toEqual([written]);
    expect(spans.length).toBeGreaterThan(0);
  });

  test('of an event that waited long is a new one with a link', async () => {
    const traces = collect<string>();
    await servers.consume({
      bus,
      consumer,
      freshMs: -1,
      handlers: on(keyRequestDue, async () => traces.add(currentTraceId())),
    });
    const written = await withSpan('request', {}, async () => {
      await publishHint(bus, keyRequestDue, { keyRequestId: 'late' });
      return currentTraceId();
    });
    const [handled] = await traces.reaches(1);
    expect(handled).not.toBe(written);
  });
});
