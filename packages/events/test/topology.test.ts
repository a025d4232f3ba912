import type { AddressInfo } from 'node:net';
import { createServer, type Socket } from 'node:net';
import { readSettings } from '@keytrail/settings';
import { type JetStreamManager, jetstreamManager, StorageType } from '@nats-io/jetstream';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { connectEvents, type EventBus, eventSettings, eventTypes, streams, TopologyMismatch } from '../src/index.ts';
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
  expect(await consumerNames('PRESENCE')).toEqual(['identity-keys-erasure', 'session-presence']);
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

test('what may not is refused, with the difference', async () => {
  await manager.streams.delete('SESSION');
  await manager.streams.add({ name: 'SESSION', subjects: ['keytrail.session.v1.>'], storage: StorageType.Memory });
  const refused = bus.ensure();
  await expect(refused).rejects.toThrow(TopologyMismatch);
  await expect(refused).rejects.toThrow(
    'stream SESSION differs from the catalogue: storage is "memory", wanted "file"',
  );
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
