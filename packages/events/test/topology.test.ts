import type { AddressInfo } from 'node:net';
import { createServer, type Socket } from 'node:net';
import { readSettings } from '@keytrail/settings';
import { AckPolicy, type JetStreamManager, jetstreamManager, StorageType } from '@nats-io/jetstream';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { connectEvents, type EventBus, eventSettings, eventTypes, streams } from '../src/index.ts';
import { type EventServers, startEventServers } from './event-servers.ts';

let servers: EventServers;
let bus: EventBus;
let manager: JetStreamManager;

beforeAll(async () => {
  servers = await startEventServers();
}, 120_000);
beforeEach(async () => {
  await servers.reset();
  bus = await servers.connect();
  manager = await jetstreamManager(bus.connection);
});
afterEach(() => servers.settle());
afterAll(() => servers?.stop());

async function consumerNames(stream: string): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of manager.consumers.list(stream)) names.push(name);
  return names.sort();
}

test('every stream and consumer of the catalogue is there', async () => {
  expect(await consumerNames('IDENTITYKEYS')).toEqual([
    'conversation-devices',
    'conversation-erasure',
    'presence-devices',
    'presence-erasure',
    'presence-notifier',
    'session-devices',
    'session-erasure',
  ]);
  expect(await consumerNames('CONVERSATION')).toEqual(['identity-keys-erasure', 'presence-notifier']);
  expect(await consumerNames('SESSION')).toEqual(['identity-keys-erasure', 'presence-notifier', 'session-dispatcher']);
  expect(await consumerNames('PRESENCE')).toEqual([
    'conversation-presence',
    'identity-keys-erasure',
    'session-presence',
  ]);
});

test('every event type belongs to a stream', () => {
  for (const type of eventTypes) {
    expect(streams.find(({ name }) => name === type.stream)?.subjects).toContain(`keytrail.${type.domain}.v1.>`);
  }
});

test('ensuring again, by many at once, changes nothing', async () => {
  const buses = await Promise.all([1, 2, 3, 4].map(() => servers.connect()));
  await Promise.all(buses.map((one) => one.ensure()));
  const info = await manager.streams.info('SESSION');
  expect(info.config).toMatchObject({ subjects: ['keytrail.session.v1.>'], storage: 'file' });
});

test('many can ensure a NATS that has nothing yet', async () => {
  for (const { name } of streams) await manager.streams.delete(name);
  const buses = await Promise.all([1, 2, 3, 4].map(() => servers.connect()));
  await Promise.all(buses.map((one) => one.ensure()));
  expect(await consumerNames('SESSION')).toEqual(['identity-keys-erasure', 'presence-notifier', 'session-dispatcher']);
});

test('what may change in place is brought back to the catalogue', async () => {
  await manager.consumers.update('SESSION', 'session-dispatcher', { max_ack_pending: 1 });
  await manager.streams.update('SESSION', { max_age: 3600e9 });
  await bus.ensure();
  expect((await manager.consumers.info('SESSION', 'session-dispatcher')).config.max_ack_pending).toBe(1024);
  expect((await manager.streams.info('SESSION')).config.max_age).toBe(3 * 24 * 3600 * 1e9);
});

test('limits of a stream are brought back to the catalogue', async () => {
  await manager.streams.update('SESSION', { max_bytes: 1000, duplicate_window: 1e9, max_msgs: 5 });
  const { mended } = await bus.ensure();
  expect(mended).toEqual([
    'stream SESSION: max_bytes is 1000, wanted -1',
    'stream SESSION: max_msgs is 5, wanted -1',
    'stream SESSION: duplicate_window is 1000000000, wanted 120000000000',
  ]);
  const { config } = await manager.streams.info('SESSION');
  expect(config).toMatchObject({ max_bytes: -1, max_msgs: -1, duplicate_window: 120e9 });
});

test('what cannot be changed in place keeps a service from being ready, each difference named, until it is gone', async () => {
  expect(await bus.readiness()).toEqual({ ready: true });
  for (const name of ['SESSION', 'PRESENCE']) {
    await manager.streams.delete(name);
    const subjects = [`keytrail.${name.toLowerCase()}.v1.>`];
    await manager.streams.add({ name, subjects, storage: StorageType.Memory, max_bytes: 1000 });
  }
  const found = await bus.ensure();
  const remedy = 'it cannot be changed in place: delete it, or change the setting';
  const differences = ['SESSION', 'PRESENCE'].map(
    (name) => `stream ${name}: storage is "memory", wanted "file"; ${remedy}`,
  );
  expect(found.unmended).toEqual(differences);
  expect(await bus.readiness()).toEqual({
    ready: false,
    why: `NATS differs from the catalogue: ${differences.join('; ')}`,
  });
  // What could be mended beside it was, and consumers are there, so that events flow meanwhile.
  expect((await manager.streams.info('SESSION')).config.max_bytes).toBe(-1);
  expect(await consumerNames('PRESENCE')).not.toEqual([]);

  for (const name of ['SESSION', 'PRESENCE']) await manager.streams.delete(name);
  expect(await bus.readiness()).toEqual({ ready: true });
});

test('a change that the server refuses is named with what it says', async () => {
  await manager.streams.update('SESSION', { subjects: ['elsewhere.>'] });
  await manager.streams.add({ name: 'LEGACY', subjects: ['keytrail.session.v1.key_delivered'] });
  const { unmended } = await bus.ensure();
  expect(unmended).toEqual([
    expect.stringMatching(
      /^stream SESSION: subjects is \["elsewhere.>"\], wanted .*; the server refused the change: .*overlap/,
    ),
  ]);
  expect((await bus.readiness()).ready).toBe(false);
});

test('what a newer build has added is told and left alone, also when an older one starts after it', async () => {
  const more = ['keytrail.session.v1.key_request_due', 'keytrail.session.v1.key_withdrawn'];
  await manager.consumers.update('SESSION', 'session-dispatcher', { filter_subjects: more });
  await manager.consumers.add('SESSION', { durable_name: 'session-archive', ack_policy: AckPolicy.Explicit });
  await manager.streams.update('SESSION', { subjects: ['keytrail.session.v1.>', 'keytrail.session.v2.>'] });
  const log = servers.log.child({});
  const told = vi.spyOn(log, 'warn');
  const older = await connectEvents({
    config: readSettings(eventSettings, { KEYTRAIL_NATS_URL: servers.nats.url }),
    log,
  });
  try {
    const { mended, unmended, foreign } = await older.ensure();
    await older.ensure();
    expect([mended, unmended]).toEqual([[], []]);
    expect(foreign).toEqual([
      'stream SESSION: subjects is ["keytrail.session.v1.>","keytrail.session.v2.>"], wanted ["keytrail.session.v1.>"]',
      `consumer session-dispatcher of SESSION: filter_subjects is ${JSON.stringify(more)}, wanted ["keytrail.session.v1.key_request_due"]`,
      'consumer session-archive of SESSION is not in the catalogue',
    ]);
    expect(told.mock.calls).toEqual([[{ foreign }, 'NATS has more than the catalogue; it is left alone']]);
    expect(await older.readiness()).toEqual({ ready: true });
  } finally {
    await older.close();
  }
  expect((await manager.consumers.info('SESSION', 'session-dispatcher')).config.filter_subjects).toEqual(more);
  expect(await consumerNames('SESSION')).toContain('session-archive');
});

test('a server that is too old is refused by its version', async () => {
  const sockets: Socket[] = [];
  const old = createServer((socket) => {
    sockets.push(socket);
    socket.write('INFO {"server_id":"old","version":"2.9.10","headers":true,"max_payload":1048576,"proto":1}\r\n');
    socket.on('data', (bytes) => {
      if (bytes.includes('PING')) socket.write('PONG\r\n');
    });
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => old.listen(0, '127.0.0.1', resolve));
  const url = `nats://127.0.0.1:${(old.address() as AddressInfo).port}`;
  const config = readSettings(eventSettings, { KEYTRAIL_NATS_URL: url });
  await expect(connectEvents({ config, log: servers.log })).rejects.toThrow('NATS server 2.9.10 is too old: 2.10.4');
  for (const socket of sockets) socket.destroy();
  old.close();
});
