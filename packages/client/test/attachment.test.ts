import { Code, ConnectError } from '@connectrpc/connect';
import { NotificationKind } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { type ClientEvents, memoryKeyStore } from '../src/index.ts';
import { FakeClock } from './fake-clock.ts';
import { clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

test('a lost stream is opened again, with a raised counter, and pulls what it may have missed', async () => {
  const world = new World();
  const clock = new FakeClock();
  const alice = await firstDevice(world, 'alice', 'laptop', { clock });
  const states: ClientEvents['state']['state'][] = [];
  alice.on('state', ({ state }) => states.push(state));
  await alice.attach();
  expect(alice.isAttached).toBe(true);
  const waiting = new Promise<void>((resolve) => alice.on('state', ({ state }) => state === 'waiting' && resolve()));
  world.streams.get('alice laptop')?.end(refuse('SHUTTING_DOWN', 'this process stops'));
  await waiting;
  expect(alice.isAttached).toBe(false);
  const again = next(alice, 'state');
  clock.advance(60_000);
  await again;
  await new Promise<void>((resolve) => alice.on('state', ({ state }) => state === 'attached' && resolve()));
  expect(world.attachCounters).toEqual([1n, 2n]);
  await alice.close();
  expect(states).toEqual(['attaching', 'attached', 'waiting', 'attaching', 'attached', 'detached']);
});

test('a heartbeat that meets no connection makes the device attach again', async () => {
  const world = new World();
  const clock = new FakeClock();
  const alice = await firstDevice(world, 'alice', 'laptop', { clock });
  await alice.attach();
  world.before.set('heartbeat', () => {
    throw refuse('CONNECTION_UNKNOWN', 'attach again');
  });
  const waiting = new Promise<ClientEvents['state']>((resolve) =>
    alice.on('state', (event) => event.state === 'waiting' && resolve(event)),
  );
  clock.advance(10_000);
  expect(await waiting).toMatchObject({ error: { reason: 'CONNECTION_UNKNOWN' } });
  await alice.close();
});

test('counters go on where the last process stopped', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  for (let process = 1; process <= 2; process += 1) {
    const alice = clientOf(world, 'alice', 'laptop', { keyStore });
    await alice.register();
    await alice.attach();
    await alice.close();
  }
  expect(world.attachCounters).toEqual([1n, 2n]);
});

test('a caller who may not attach is told so, once', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  world.before.set('attach', () => {
    throw refuse('TOKEN_INVALID', 'expired');
  });
  await expect(alice.attach()).rejects.toMatchObject({ reason: 'TOKEN_INVALID' });
  expect(world.attachCounters).toEqual([1n]);
});

test('a low pool of prekeys is refilled', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await alice.attach();
  world.prekeys.lowBelow = 6;
  const replenished = next(alice, 'prekeysReplenished');
  world.streams.get('alice laptop')?.push({ kind: NotificationKind.PREKEYS_LOW });
  expect(await replenished).toEqual({ oneTime: 10, kem: 10 });
  const ids = world.pools.get('alice laptop')?.oneTime.map(({ keyId }) => keyId) ?? [];
  expect(new Set(ids).size).toBe(10);
  await alice.close();
});

test('an attached client sends without asking for the conversation, until it hears of a change', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await alice.attach();
  await alice.send(conversationId, 'one');
  const asked = world.count('getConversation');
  await alice.send(conversationId, 'two');
  expect(world.count('getConversation')).toBe(asked);
  const { sessionId } = await bob.rotate(conversationId);
  const changed = next(alice, 'conversationChanged');
  world.streams.get('alice laptop')?.push({ kind: NotificationKind.CONVERSATION_CHANGED, conversationId });
  await changed;
  expect(await alice.send(conversationId, 'three')).toMatchObject({ sessionId, epoch: 2n });
  await alice.close();
});

test('a stream that outlived its token is opened again with a fresh one', async () => {
  const world = new World();
  const clock = new FakeClock();
  const alice = await firstDevice(world, 'alice', 'laptop', { clock });
  await alice.attach();
  const waiting = new Promise<ClientEvents['state']>((resolve) =>
    alice.on('state', (event) => event.state === 'waiting' && resolve(event)),
  );
  world.streams
    .get('alice laptop')
    ?.end(refuse('TOKEN_INVALID', 'the token has expired', { metadata: { problem: 'expired' } }));
  expect(await waiting).toMatchObject({ error: { reason: 'TOKEN_INVALID' } });
  const attached = new Promise<void>((resolve) => alice.on('state', ({ state }) => state === 'attached' && resolve()));
  clock.advance(60_000);
  await attached;
  expect(world.attachCounters).toEqual([1n, 2n]);
  await alice.close();
});

test('a device that is revoked is detached for good', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop');
  await alice.attach();
  const fault = new Promise<ClientEvents['fault']>((resolve) => alice.on('fault', resolve));
  world.streams.get('alice laptop')?.end(refuse('DEVICE_REVOKED', 'revoked', { metadata: { device_id: 'laptop' } }));
  expect(await fault).toMatchObject({ during: 'attach', error: { reason: 'DEVICE_REVOKED' } });
  expect(world.attachCounters).toEqual([1n]);
  await alice.close();
});

test.each([Code.PermissionDenied, Code.Unauthenticated, Code.Unimplemented])(
  'a refusal without a reason is no service’s: the device goes on trying (code %s)',
  async (code) => {
    const world = new World();
    const clock = new FakeClock();
    const alice = await firstDevice(world, 'alice', 'laptop', { clock });
    world.before.set('attach', () => {
      throw new ConnectError('log in to this network first', code);
    });
    const waiting = new Promise<unknown>((resolve) =>
      alice.on('state', ({ state, error }) => state === 'waiting' && resolve(error)),
    );
    const attached = alice.attach();
    expect(await waiting).toMatchObject({ code, reason: '' });
    world.before.delete('attach');
    clock.advance(60_000);
    await attached;
    expect(alice.isAttached).toBe(true);
    await alice.close();
  },
);
