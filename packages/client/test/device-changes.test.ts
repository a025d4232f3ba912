import type { GetDevicesResponse } from '@keytrail/contracts';
import { NotificationKind } from '@keytrail/contracts';
import { expect, test } from 'vitest';
import { DeviceRevokedError, type KeytrailClient } from '../src/index.ts';
import { approvedDevice, firstDevice, next } from './people.ts';
import { World } from './world.ts';

const peers = ['bob', 'carol', 'dave'];

/** Alice is attached and has seen the logs of all peers; bob, the first of them, is where she can be held. */
async function attachedAlice() {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', { upkeep: { jitterMs: 0 } });
  const devices = new Map<string, KeytrailClient>();
  for (const user of peers) devices.set(user, await firstDevice(world, user));
  await alice.createConversation({ kind: 'group', members: peers });
  await alice.attach();
  const notify = (userId: string) =>
    world.streams.get('alice laptop')?.push({ kind: NotificationKind.DEVICES_CHANGED, userId });
  return { world, alice, devices, notify };
}

test('any number of notifications about devices costs one look more than the one that goes on', async () => {
  const { world, alice, devices, notify } = await attachedAlice();
  const [reached, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const looked: string[][] = [];
  world.after.set('getDevices', (async ({ deviceLists }: GetDevicesResponse) => {
    looked.push(deviceLists.map(({ userId }) => userId));
    if (looked.length > 1) return;
    reached.resolve();
    await released.promise;
  }) as never);
  notify('bob');
  await reached.promise;
  world.identities.revoke('bob', 'laptop');
  world.identities.revoke('carol', 'laptop');
  for (let i = 0; i < 20; i += 1) for (const user of ['bob', 'carol']) notify(user);
  // What comes on the stream after them has been read when this has.
  const heard = next(alice, 'messageAdded');
  world.streams.get('alice laptop')?.push({ kind: NotificationKind.MESSAGE_ADDED });
  await heard;
  const changed = new Promise<string[]>((resolve) => {
    const users: string[] = [];
    alice.on('devicesChanged', ({ userId }) => users.push(userId) === 2 && resolve(users));
  });
  released.resolve();
  expect((await changed).sort()).toEqual(['bob', 'carol']);
  notify('dave');
  const last = next(alice, 'devicesChanged');
  const dave = devices.get('dave');
  if (!dave) throw new Error('no dave');
  await approvedDevice(world, dave, 'phone');
  notify('dave');
  await last;
  expect(looked.filter((users) => users.includes('bob') || users.includes('carol'))).toEqual([
    ['bob'],
    ['bob', 'carol'],
  ]);
  await alice.close();
});

test('a list that is refused does not hide what changed for others', async () => {
  const { world, alice, notify } = await attachedAlice();
  const [reached, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  let held = false;
  world.after.set('getDevices', (async ({ deviceLists }: GetDevicesResponse) => {
    for (const list of deviceLists) if (list.userId === 'bob') list.logHead = new Uint8Array(32).fill(7);
    if (held) return;
    held = true;
    reached.resolve();
    await released.promise;
  }) as never);
  notify('dave');
  await reached.promise;
  world.identities.revoke('carol', 'laptop');
  for (const user of ['bob', 'carol']) notify(user);
  const heard = next(alice, 'messageAdded');
  world.streams.get('alice laptop')?.push({ kind: NotificationKind.MESSAGE_ADDED });
  await heard;
  const [refused, changed] = [next(alice, 'fault'), next(alice, 'devicesChanged')];
  released.resolve();
  expect(await refused).toMatchObject({ error: { name: 'DeviceListRefusedError', userId: 'bob' } });
  expect(await changed).toMatchObject({ userId: 'carol', revoked: ['laptop'] });
  await alice.close();
});

test('a device that knows of its revocation attaches no more', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await alice.attach();
  const detached = new Promise<void>((resolve) => alice.on('state', ({ state }) => state === 'detached' && resolve()));
  await alice.revokeDevice('laptop');
  await detached;
  await expect(alice.attach()).rejects.toThrow(DeviceRevokedError);
  expect(alice.isAttached).toBe(false);
  await alice.close();
});
