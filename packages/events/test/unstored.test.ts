import { randomUUID } from 'node:crypto';
import type { Database } from '@keytrail/storage';
import { jetstreamManager } from '@nats-io/jetstream';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { addEvent, messageAdded } from '../src/index.ts';
import { type EventServers, startEventServers } from './event-servers.ts';

let servers: EventServers;
beforeAll(async () => {
  servers = await startEventServers();
  await servers.reset();
}, 120_000);
afterAll(() => servers?.stop());

async function left(db: Database): Promise<number | undefined> {
  const { rows } = await db.pool.query<{ count: number }>('SELECT count(*)::int AS count FROM outbox');
  return rows[0]?.count;
}

test('an event that JetStream does not store stays in the outbox, and is published when it does', async () => {
  const bus = await servers.connect();
  const db = await servers.openDatabase();
  const manager = await jetstreamManager(bus.connection);
  await manager.streams.delete('CONVERSATION');
  const triedTwice = Promise.withResolvers<void>();
  let tried = 0;
  const log = servers.log.child({});
  log.warn = () => {
    tried += 1;
    if (tried === 2) triedTwice.resolve();
  };
  const conversationId = randomUUID();
  await db.transaction((tx) =>
    addEvent(tx, messageAdded, { conversationId, sequence: 1n }, { aggregate: conversationId }),
  );
  const relay = servers.relay(db, bus, { log, pollMs: 20 });
  // The second try comes only once the first one has dealt with its batch; without a row there is none.
  const emptied = vi.waitUntil(async () => (await left(db)) === 0, { timeout: 20_000, interval: 20 });
  await Promise.race([triedTwice.promise, emptied]);
  expect(await left(db)).toBe(1);

  await bus.ensure();
  relay.nudge();
  await emptied;
  expect((await manager.streams.info('CONVERSATION')).state.messages).toBe(1);
});
