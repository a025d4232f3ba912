import { NotificationKind } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { type ClientEvents, type KeyStore, memoryKeyStore, type StoredPrekeyKind } from '../src/index.ts';
import { copyOf, prekeyKinds } from './copied-key-store.ts';
import { FakeClock } from './fake-clock.ts';
import { clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

const dayMs = 24 * 3_600_000;

async function idsIn(store: KeyStore, kind: StoredPrekeyKind): Promise<number[]> {
  return (await store.prekeys(kind)).map(({ keyId }) => keyId);
}

async function heldIn(store: KeyStore): Promise<number> {
  return (await Promise.all(prekeyKinds.map((kind) => store.prekeys(kind)))).flat().length;
}

/** Ids that a claim may still get. */
function issuable(world: World): { oneTime: number[]; kem: number[] } {
  const pools = world.prekeys.poolsOf({ userId: 'alice', deviceId: 'laptop' });
  return { oneTime: pools.oneTime.map(({ keyId }) => keyId), kem: pools.kem.map(({ keyId }) => keyId) };
}

test('a pool that is low at the attach is refilled, and the keys are compared once in a process', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  world.prekeys.lowBelow = 6;
  const replenished = next(alice, 'prekeysReplenished');
  await alice.attach();
  expect(await replenished).toEqual({ oneTime: 10, kem: 10 });
  const stream = world.streams.get('alice laptop');
  const again = next(alice, 'prekeysReplenished');
  world.prekeys.lowBelow = 11;
  world.prekeys.refillTo = 12;
  stream?.push({ kind: NotificationKind.PREKEYS_LOW });
  expect(await again).toEqual({ oneTime: 12, kem: 12 });
  expect(world.count('checkKeys')).toBe(1);
  await alice.close();
});

test('large pools are filled in calls of 100 keys of a kind at most', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  world.prekeys.refillTo = 230;
  const sizes: number[] = [];
  world.before.set('replenishPrekeys', (({ oneTimePrekeys }: { oneTimePrekeys: unknown[] }) => {
    sizes.push(oneTimePrekeys.length);
  }) as never);
  expect(await alice.replenishPrekeys()).toEqual({ oneTime: 230, kem: 230 });
  expect(sizes).toEqual([100, 100, 25]);
});

test('nothing waits for the upkeep: a client is attached and sends while the service does not answer', async () => {
  const world = new World();
  const [alice] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const asked = Promise.withResolvers<void>();
  world.before.set('checkKeys', () => {
    asked.resolve();
    return new Promise(() => {});
  });
  await alice.attach();
  await asked.promise;
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(await alice.send(conversationId, 'hello')).toMatchObject({ sequence: 1n });
  await alice.close();
});

test('failures are told, and tried again later', async () => {
  const world = new World();
  const clock = new FakeClock();
  const alice = await firstDevice(world, 'alice', 'laptop', { clock, retry: { retries: 0 } });
  world.before.set('checkKeys', () => {
    throw refuse('PEER_UNAVAILABLE', 'away');
  });
  const fault = next(alice, 'fault');
  await alice.attach();
  expect(await fault).toMatchObject({ during: 'keep prekeys', error: { reason: 'PEER_UNAVAILABLE' } });
  world.before.delete('checkKeys');
  const answered = new Promise<void>((resolve) => world.after.set('checkKeys', () => resolve()));
  await Promise.resolve();
  clock.advance(120_000);
  await answered;
  await alice.close();
});

test('a comparison that fails does not keep an empty pool from being filled', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', { retry: { retries: 0 } });
  world.prekeys.lowBelow = 6;
  world.before.set('checkKeys', () => {
    throw refuse('INTERNAL_FAULT', 'broken');
  });
  await expect(alice.upkeep()).rejects.toMatchObject({ reason: 'INTERNAL_FAULT' });
  expect(issuable(world).oneTime).toHaveLength(10);
});

test('many calls at once are one pass after the one that runs', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const entered = Promise.withResolvers<void>();
  const released = Promise.withResolvers<void>();
  world.before.set('checkKeys', () => {
    entered.resolve();
    return released.promise;
  });
  const first = alice.upkeep();
  await entered.promise;
  const others = Array.from({ length: 8 }, () => alice.upkeep());
  released.resolve();
  await Promise.all([first, ...others]);
  expect(world.count('checkKeys')).toBe(2);
});

test('the private keys of a refused refill are forgotten', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore });
  const before = await heldIn(keyStore);
  world.before.set('replenishPrekeys', () => {
    throw refuse('PREKEY_POOL_FULL', 'full', { metadata: { limit: '5' } });
  });
  await expect(alice.replenishPrekeys()).rejects.toMatchObject({ reason: 'PREKEY_POOL_FULL' });
  expect(await heldIn(keyStore)).toBe(before);
  expect(await keyStore.pending('replenish prekeys')).toBeUndefined();
});

test('a refill that was not answered is sent again as it was, also by the next process', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const options = { keyStore, retry: { retries: 0 } };
  const requestIds: string[] = [];
  world.before.set('replenishPrekeys', (({ requestId }: { requestId: string }) => {
    requestIds.push(requestId);
  }) as never);
  world.after.set('replenishPrekeys', () => {
    throw refuse('INTERNAL_FAULT', 'the answer was lost');
  });
  const alice = await firstDevice(world, 'alice', 'laptop', options);
  await expect(alice.replenishPrekeys()).rejects.toMatchObject({ reason: 'INTERNAL_FAULT' });
  const held = await heldIn(keyStore);
  world.after.delete('replenishPrekeys');
  await clientOf(world, 'alice', 'laptop', options).upkeep();
  expect(requestIds).toHaveLength(2);
  expect(new Set(requestIds).size).toBe(1);
  expect(await heldIn(keyStore)).toBe(held);
  expect(issuable(world).oneTime).toEqual(await idsIn(keyStore, 'one-time'));
});

test('keys that were made and never sent, as after a crash, are uploaded', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  await firstDevice(world, 'alice', 'laptop', { keyStore });
  const crashing: KeyStore = {
    ...keyStore,
    savePending: async () => {
      throw new Error('the power went out');
    },
  };
  const alice = clientOf(world, 'alice', 'laptop', { keyStore: crashing });
  await expect(alice.replenishPrekeys()).rejects.toThrow('the power went out');
  const { repaired } = await clientOf(world, 'alice', 'laptop', { keyStore }).upkeep();
  expect(repaired).toEqual({ uploaded: 10, retired: 0, forgotten: 0 });
  expect(issuable(world)).toEqual({
    oneTime: await idsIn(keyStore, 'one-time'),
    kem: await idsIn(keyStore, 'kem-one-time'),
  });
});

test('what is due is rotated; the old private keys stay for the grace period, and then they go', async () => {
  const world = new World();
  const clock = new FakeClock();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { clock, keyStore });
  const old = await keyStore.device();
  world.prekeys.signedPrekeyDue = true;
  world.prekeys.lastResortPrekeyDue = true;
  world.prekeys.keepOldUntil = new Date(clock.now().getTime() + 14 * dayMs);
  const rotated = next(alice, 'prekeysRotated');
  await alice.upkeep();
  const current = await keyStore.device();
  expect(await rotated).toEqual({
    signedPrekeyId: current?.signedPrekeyId,
    lastResortPrekeyId: current?.lastResortPrekeyId,
    keepOldUntil: world.prekeys.keepOldUntil,
  });
  expect(world.device('alice', 'laptop').signedPrekey?.keyId).toBe(current?.signedPrekeyId);
  expect(await idsIn(keyStore, 'signed')).toEqual([old?.signedPrekeyId, current?.signedPrekeyId]);
  clock.advance(13 * dayMs);
  await alice.upkeep();
  expect(await idsIn(keyStore, 'signed')).toEqual([old?.signedPrekeyId, current?.signedPrekeyId]);
  clock.advance(dayMs);
  await alice.upkeep();
  expect(await idsIn(keyStore, 'signed')).toEqual([current?.signedPrekeyId]);
  expect(await idsIn(keyStore, 'kem-last-resort')).toEqual([current?.lastResortPrekeyId]);
});

test('a rotation whose answer was lost is finished by the next process, with the same keys', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const options = { keyStore, retry: { retries: 0 } };
  const alice = await firstDevice(world, 'alice', 'laptop', options);
  world.prekeys.signedPrekeyDue = true;
  world.after.set('rotateSignedPrekey', () => {
    throw refuse('INTERNAL_FAULT', 'the answer was lost');
  });
  await expect(alice.upkeep()).rejects.toMatchObject({ reason: 'INTERNAL_FAULT' });
  world.after.delete('rotateSignedPrekey');
  expect(await clientOf(world, 'alice', 'laptop', options).upkeep()).toEqual({});
  const current = await keyStore.device();
  expect(world.device('alice', 'laptop').signedPrekey?.keyId).toBe(current?.signedPrekeyId);
  expect(world.count('rotateSignedPrekey')).toBe(2);
});

test('a refused rotation leaves the current keys current, and nothing behind', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore });
  const before = [await keyStore.device(), await heldIn(keyStore)];
  world.prekeys.signedPrekeyDue = true;
  world.before.set('rotateSignedPrekey', () => {
    throw refuse('KEY_INVALID', 'no', { metadata: { field: 'signed_prekey.public_key', rule: 'low-order' } });
  });
  await expect(alice.upkeep()).rejects.toMatchObject({ reason: 'KEY_INVALID' });
  expect([await keyStore.device(), await heldIn(keyStore)]).toEqual(before);
});

test('an older copy of the key store is repaired: the service hands out only what the device can open', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore });
  const copy = await copyOf(keyStore);
  world.prekeys.signedPrekeyDue = true;
  world.prekeys.lastResortPrekeyDue = true;
  world.prekeys.lowBelow = 6;
  await alice.upkeep();
  await alice.close();

  const restored = clientOf(world, 'alice', 'laptop', { keyStore: copy });
  const repaired = next(restored, 'prekeysRepaired');
  await restored.upkeep();
  expect(await repaired).toEqual({ uploaded: 0, retired: 10, forgotten: 0 });
  const { oneTime, kem } = issuable(world);
  expect(oneTime).toHaveLength(10);
  const held = { oneTime: await idsIn(copy, 'one-time'), kem: await idsIn(copy, 'kem-one-time') };
  expect(held.oneTime).toEqual(expect.arrayContaining(oneTime));
  expect(held.kem).toEqual(expect.arrayContaining(kem));
  const current = await copy.device();
  expect(world.device('alice', 'laptop')).toMatchObject({
    signedPrekey: { keyId: current?.signedPrekeyId },
    lastResortPrekey: { keyId: current?.lastResortPrekeyId },
  });
  expect(await idsIn(copy, 'signed')).toContain(current?.signedPrekeyId);
});

test('ids that an older copy gives again, and that the service knows with other keys, are skipped', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore });
  const copy = await copyOf(keyStore);
  await alice.replenishPrekeys();
  world.prekeys.poolsOf({ userId: 'alice', deviceId: 'laptop' }).oneTime.splice(0);
  world.prekeys.poolsOf({ userId: 'alice', deviceId: 'laptop' }).kem.splice(0);

  const restored = clientOf(world, 'alice', 'laptop', { keyStore: copy });
  const before = await heldIn(copy);
  expect(await restored.replenishPrekeys()).toEqual({ oneTime: 10, kem: 10 });
  expect(await heldIn(copy)).toBe(before + 20);
  expect(issuable(world).oneTime.every((keyId) => keyId > 1_000)).toBe(true);
});

test('a prekey under whose id the service has another key is forgotten', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore });
  const [wrong] = await keyStore.prekeys('one-time');
  const [other] = await keyStore.prekeys('signed');
  if (!wrong || !other) throw new Error('no prekeys');
  await keyStore.savePrekeys([{ ...wrong, keyPair: other.keyPair }]);
  expect((await alice.upkeep()).repaired).toEqual({ uploaded: 0, retired: 1, forgotten: 1 });
  expect(await idsIn(keyStore, 'one-time')).not.toContain(wrong.keyId);
  expect(issuable(world).oneTime).not.toContain(wrong.keyId);
});

test('a store that has lost its signed prekey gets a new one', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore });
  await keyStore.removePrekeys(await keyStore.prekeys('signed'));
  await alice.upkeep();
  const current = await keyStore.device();
  expect(await idsIn(keyStore, 'signed')).toEqual([current?.signedPrekeyId]);
  expect(world.device('alice', 'laptop').signedPrekey?.keyId).toBe(current?.signedPrekeyId);
});

test('one-time prekeys that nobody used for too long are retired first, and forgotten after the grace period', async () => {
  const world = new World();
  const clock = new FakeClock();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { clock, keyStore });
  const old = await idsIn(keyStore, 'one-time');
  clock.advance(121 * dayMs);
  await alice.upkeep();
  expect(issuable(world).oneTime).toHaveLength(10);
  expect(issuable(world).oneTime.some((keyId) => old.includes(keyId))).toBe(false);
  expect(await idsIn(keyStore, 'one-time')).toEqual(expect.arrayContaining(old));
  clock.advance(14 * dayMs);
  await alice.upkeep();
  expect((await idsIn(keyStore, 'one-time')).some((keyId) => old.includes(keyId))).toBe(false);
});

test('a device under whose name other keys are registered is told so', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  world.after.set('checkKeys', ((answer: { identityDiffers: boolean }) => {
    answer.identityDiffers = true;
  }) as never);
  await expect(alice.upkeep()).rejects.toMatchObject({ name: 'RegisteredDifferentlyError' });
});

test('with upkeep switched off, nothing is done until it is asked for', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', { upkeep: false });
  world.prekeys.lowBelow = 6;
  const faults: ClientEvents['fault'][] = [];
  alice.on('fault', (fault) => faults.push(fault));
  await alice.attach();
  world.streams.get('alice laptop')?.push({ kind: NotificationKind.PREKEYS_LOW });
  const added = next(alice, 'messageAdded');
  world.streams.get('alice laptop')?.push({ kind: NotificationKind.MESSAGE_ADDED });
  await added;
  expect([world.count('checkKeys'), world.count('getPrekeyStatus')]).toEqual([0, 0]);
  expect((await alice.upkeep()).replenished).toEqual({ oneTime: 10, kem: 10 });
  expect(faults).toEqual([]);
  await alice.close();
});
