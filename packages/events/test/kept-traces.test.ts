import { currentTraceId, keepTrace, withSpan } from '@keytrail/telemetry';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { publishCore, subscribeCore } from '../src/core-nats.ts';
import { addEvent, consumers, keyRequestDue, on } from '../src/index.ts';
import { type EventServers, startEventServers } from './event-servers.ts';

let servers: EventServers;
const lines: Record<string, unknown>[] = [];
const said = (message: string) => lines.filter((line) => line.message === message);

beforeAll(async () => {
  const logTo = { write: (line: string) => void lines.push(JSON.parse(line)) };
  servers = await startEventServers({ logTo, traceRatio: 0 });
});
beforeEach(() => servers.reset());
afterEach(() => servers.settle());
afterAll(() => servers?.stop());

const consumer = consumers.sessionDispatcher;

test('with nothing sampled, what comes of an event of a kept trace is kept when it is delivered again', async () => {
  const [bus, db] = [await servers.connect(), await servers.openDatabase()];
  const handledIn: string[] = [];
  const handlers = on(keyRequestDue, async (_, { delivery }) => {
    handledIn.push(currentTraceId());
    if (delivery === 1) throw new Error('once');
  });
  await servers.consume({ bus, db, consumer, retryDelayMs: () => 1, handlers });
  servers.relay(db, bus);
  const add = (id: string) =>
    db.transaction((tx) => addEvent(tx, keyRequestDue, { keyRequestId: id, attempt: 1 }, { aggregate: id }));
  await withSpan('request', {}, () => add('unsampled'));
  await vi.waitFor(() => expect(handledIn).toHaveLength(2), 10_000);
  const ofMiss = await withSpan('request', {}, async () => {
    keepTrace('miss');
    await add('kept');
    return currentTraceId();
  });
  await vi.waitFor(() => expect(handledIn).toHaveLength(4), 10_000);
  const [, unsampledAgain, first, again] = handledIn;
  expect(first).toBe(ofMiss);
  expect(again).not.toBe(ofMiss);
  const kept = async () => (await servers.spans.spans()).filter(({ traceId }) => traceId === again);
  await vi.waitFor(async () => expect(await kept()).toHaveLength(1), 10_000);
  const [process] = await kept();
  expect(process?.links?.[0]?.traceId).toBe(ofMiss);
  const exported = new Set((await servers.spans.spans()).map(({ traceId }) => traceId));
  expect(exported).not.toContain(unsampledAgain);
});

test('the log says in which trace an event failed, and in which it became a dead letter', async () => {
  const [bus, db] = [await servers.connect(), await servers.openDatabase()];
  const handledIn: string[] = [];
  const handlers = on(keyRequestDue, async () => {
    handledIn.push(currentTraceId());
    throw new Error('never');
  });
  await servers.consume({ bus, db, consumer, retryDelayMs: () => 1, maxDeliveries: 2, handlers });
  servers.relay(db, bus);
  lines.length = 0;
  await db.transaction((tx) => addEvent(tx, keyRequestDue, { keyRequestId: 'r', attempt: 1 }, { aggregate: 'r' }));
  await vi.waitFor(() => expect(said('an event is a dead letter')).toHaveLength(1), 10_000);
  expect(said('an event could not be handled; it comes again')).toMatchObject([{ trace_id: handledIn[0] }]);
  expect(said('an event is a dead letter')).toMatchObject([{ trace_id: handledIn[1] }]);
});

test('so it does of a message of core NATS', async () => {
  const bus = await servers.connect();
  let handledIn = '';
  subscribeCore(bus, 'keytrail.test', async () => {
    handledIn = currentTraceId();
    throw new Error('not this one');
  });
  await bus.connection.flush();
  lines.length = 0;
  publishCore(bus, 'keytrail.test', new Uint8Array());
  await vi.waitFor(() => expect(said('a message could not be handled')).toHaveLength(1), 10_000);
  expect(said('a message could not be handled')).toMatchObject([{ trace_id: handledIn }]);
});
