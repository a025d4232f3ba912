import { randomUUID } from 'node:crypto';
import { createClient } from '@connectrpc/connect';
import { type KeytrailClient, memoryKeyStore } from '@keytrail/client';
import { IdentityKeysService } from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { copyOf } from '../../packages/client/test/copied-key-store.ts';
import { someone, startWorld, type World } from './world.ts';

const lowBelow = 8;
const refillTo = 12;
let world: World;

beforeAll(async () => {
  world = await startWorld({
    name: 'test-upkeep',
    serviceEnv: {
      'identity-keys': {
        KEYTRAIL_LOW_PREKEYS_BELOW: String(lowBelow),
        KEYTRAIL_REFILL_PREKEYS_TO: String(refillTo),
        // Due as soon as somebody looks.
        KEYTRAIL_SIGNED_PREKEY_MAX_AGE_MS: '1',
      },
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

const quick = { prekeys: 10, upkeep: { jitterMs: 0 } };

function identityKeysAs(userId: string, deviceId: string) {
  const transport = createGrpcTransport({
    target: world.constellation.grpcTarget('identity-keys'),
    authorization: async () => `Bearer ${await world.constellation.issuer.token({ userId, deviceId })}`,
  });
  return createClient(IdentityKeysService, transport);
}

async function countsOf(userId: string, deviceId: string) {
  const { status } = await identityKeysAs(userId, deviceId).getPrekeyStatus({});
  return { oneTime: status?.counts?.oneTime, kem: status?.counts?.kem };
}

/** A user who has never met anybody claims a device's prekeys so many times. */
async function drain(userId: string, deviceId: string, times: number): Promise<void> {
  const stranger = someone('stranger');
  await world.device(stranger, 'phone', { ...quick, prekeys: 1 }).register();
  const identityKeys = identityKeysAs(stranger, 'phone');
  for (let i = 0; i < times; i += 1) {
    const { results } = await identityKeys.claimPrekeyBundles({
      claimId: randomUUID(),
      devices: [{ userId, deviceId }],
    });
    expect(results[0]?.bundle?.oneTimePrekey).toBeDefined();
  }
}

/** What a backup of the device keeps of its key store. */
/** A new user's first message to somebody: its envelope spends a claimed bundle. */
async function greet(to: string): Promise<string> {
  const client: KeytrailClient = world.device(someone('friend'), 'phone', { ...quick, prekeys: 1 });
  await client.register();
  const { conversationId } = await client.createConversation({ kind: 'direct', members: [to] });
  await client.send(conversationId, `hello from ${client.user}`);
  await client.close();
  return conversationId;
}

test('a pool that is drained by claims is refilled by the device itself, and those of another device are left alone', async () => {
  const bob = someone('bob');
  const phone = await world.online(bob, 'phone', quick);
  await world.further(phone, bob, 'tablet', quick);
  const replenished = new Promise((resolve) => phone.on('prekeysReplenished', resolve));
  await drain(bob, 'phone', 10 - lowBelow + 1);
  expect(await replenished).toEqual({ oneTime: refillTo, kem: refillTo });
  expect(await countsOf(bob, 'phone')).toEqual({ oneTime: refillTo, kem: refillTo });
  expect(await countsOf(bob, 'tablet')).toEqual({ oneTime: 10, kem: 10 });
});

test('a pool that was drained while the device was away is refilled when it attaches', async () => {
  const bob = someone('bob');
  const phone = world.device(bob, 'phone', quick);
  await phone.register();
  await drain(bob, 'phone', 10 - lowBelow + 1);
  const replenished = new Promise((resolve) => phone.on('prekeysReplenished', resolve));
  await phone.attach();
  expect(await replenished).toEqual({ oneTime: refillTo, kem: refillTo });
});

test('a restored older copy of the key store is repaired: no envelope that is sealed afterwards fails to open', async () => {
  const bob = someone('bob');
  const keyStore = memoryKeyStore();
  const phone = world.device(bob, 'phone', { ...quick, keyStore, upkeep: false });
  await phone.register();
  const backup = await copyOf(keyStore);
  await drain(bob, 'phone', 3);
  expect(await phone.upkeep()).toMatchObject({ replenished: { oneTime: refillTo }, rotated: {} });
  await phone.close();

  const restored = world.device(bob, 'phone', { ...quick, keyStore: backup, upkeep: false });
  const { repaired } = await restored.upkeep();
  expect(repaired).toMatchObject({ uploaded: 0, forgotten: 0 });
  expect(repaired?.retired).toBeGreaterThan(0);
  expect((await restored.upkeep()).repaired).toBeUndefined();
  const { oneTime = 0 } = await countsOf(bob, 'phone');
  expect(oneTime).toBeGreaterThanOrEqual(7);

  // More first contacts than there are one-time prekeys: the last ones seal to the last-resort prekey.
  for (let i = 0; i < oneTime + 2; i += 1) {
    const conversationId = await greet(bob);
    const { origin } = await restored.openSession(conversationId, undefined, { recover: false });
    expect(origin).toBe('read');
    expect(await restored.messages(conversationId, { recover: false })).toMatchObject([
      { text: expect.stringContaining('hello from') },
    ]);
  }
  expect(await countsOf(bob, 'phone')).toEqual({ oneTime: 0, kem: 0 });
});

test('a signed prekey that is due is rotated, and an envelope that was sealed to the old one still opens', async () => {
  const bob = someone('bob');
  const keyStore = memoryKeyStore();
  const phone = world.device(bob, 'phone', { ...quick, keyStore });
  await phone.register();
  const before = await keyStore.device();
  const conversationId = await greet(bob);
  const rotated = new Promise<{ signedPrekeyId: number | undefined; keepOldUntil: Date }>((resolve) =>
    phone.on('prekeysRotated', resolve),
  );
  await phone.attach();
  const { signedPrekeyId, keepOldUntil } = await rotated;
  expect(signedPrekeyId).not.toBe(before?.signedPrekeyId);
  expect(keepOldUntil.getTime()).toBeGreaterThan(Date.now());
  const { deviceLists } = await identityKeysAs(bob, 'phone').getDevices({ userIds: [bob] });
  expect(deviceLists[0]?.devices[0]?.signedPrekey?.keyId).toBe(signedPrekeyId);
  expect((await keyStore.prekeys('signed')).map(({ keyId }) => keyId)).toContain(before?.signedPrekeyId);
  const { origin } = await phone.openSession(conversationId, undefined, { recover: false });
  expect(origin).toBe('read');
  const later = await greet(bob);
  expect((await phone.openSession(later, undefined, { recover: false })).origin).toBe('read');
});
