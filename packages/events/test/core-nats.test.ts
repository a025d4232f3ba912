import { currentTraceId, withSpan } from '@keytrail/telemetry';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { answerCore, type EventBus, publishCore, requestCore, subscribeCore } from '../src/index.ts';
import { collect, type EventServers, startEventServers } from './event-servers.ts';

let servers: EventServers;
let bus: EventBus;

beforeAll(async () => {
  servers = await startEventServers();
}, 120_000);
beforeEach(async () => {
  bus = await servers.connect();
});
afterEach(() => servers.settle());
afterAll(() => servers?.stop());

const bytes = (text: string) => new TextEncoder().encode(text);

test('a message reaches who listens, with its trace', async () => {
  const got = collect<{ text: string; subject: string; traceId: string }>();
  const gateway = await servers.connect();
  const listening = subscribeCore(
    gateway,
    'keytrail.gateway.*.deliver',
    async (received, subject) => {
      got.add({ text: new TextDecoder().decode(received), subject, traceId: currentTraceId() });
    },
    { template: 'keytrail.gateway.{gateway}.deliver' },
  );
  await gateway.connection.flush();
  const traceId = await withSpan('request', {}, async () => {
    publishCore(bus, 'keytrail.gateway.g1.deliver', bytes('hello'), { template: 'keytrail.gateway.{gateway}.deliver' });
    return currentTraceId();
  });
  expect(await got.reaches(1)).toEqual([{ text: 'hello', subject: 'keytrail.gateway.g1.deliver', traceId }]);
  listening.stop();
});

test('a handler that fails does not stop the next message', async () => {
  const got = collect<number>();
  subscribeCore(bus, 'keytrail.test', async ([number = 0]) => {
    got.add(number);
    if (number === 1) throw new Error('the first fails');
  });
  publishCore(bus, 'keytrail.test', new Uint8Array([1]));
  publishCore(bus, 'keytrail.test', new Uint8Array([2]));
  expect(await got.reaches(2)).toEqual([1, 2]);
});

test('a question is answered by who owns the subject, and fails at once when nobody does', async () => {
  answerCore(bus, 'keytrail.gateway.g2.heartbeat', async (asked) => Uint8Array.from(asked, (byte) => byte + 1));
  const answer = await requestCore(bus, 'keytrail.gateway.g2.heartbeat', new Uint8Array([1, 2]));
  expect([...answer]).toEqual([2, 3]);
  await expect(requestCore(bus, 'keytrail.gateway.gone.heartbeat', new Uint8Array())).rejects.toThrow('no responders');
});
