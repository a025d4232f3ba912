import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { type KeyStore, type KeytrailClient, memoryKeyStore, UnknownDevicesError } from '../src/index.ts';
import { approvedDevice, clientOf, firstDevice } from './people.ts';
import { World } from './world.ts';

/** The next call of a method is not answered: after it was done, or instead. */
function loseAnswer(world: World, method: string, when: 'after' | 'before' = 'after') {
  world[when].set(method, () => {
    world[when].delete(method);
    throw refuse('SHUTTING_DOWN', 'draining');
  });
}

/** From now on a method is refused, as by a service that has forgotten the request id. */
function refuseAlways(world: World, method: string, reason: Parameters<typeof refuse>[0]) {
  world.before.set(method, () => {
    throw refuse(reason, 'no');
  });
}

const noRetries = { retry: { retries: 0 } };

async function aliceWithStore(world: World): Promise<{ alice: KeytrailClient; keyStore: KeyStore }> {
  const keyStore = memoryKeyStore();
  return { alice: await firstDevice(world, 'alice', 'laptop', { keyStore, ...noRetries }), keyStore };
}

/** The root key in the store is the user's, and the certificate there is the registered one. */
async function expectWhole(world: World, keyStore: KeyStore, deviceId = 'laptop') {
  const stored = await keyStore.device();
  expect(stored?.state).toBe('registered');
  expect(stored?.rootKey?.publicKey).toEqual(world.identities.logOf('alice').rootKey);
  const client = clientOf(world, 'alice', deviceId, { keyStore });
  expect(await client.rootKeyOf('alice')).toEqual(stored?.rootKey?.publicKey);
  // Compares the certificate with the registered one, too.
  await client.upkeep();
}

test('a device that is registered twice at once is registered once, with its root key', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = clientOf(world, 'alice', 'laptop', { keyStore });
  await Promise.all([alice.register(), alice.register()]);
  expect(world.count('registerDevice')).toBe(1);
  await expectWhole(world, keyStore);
});

test('link requests that are made at once are the same', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const phone = clientOf(world, 'alice', 'phone');
  const [link, same] = await Promise.all([phone.createLinkRequest(), phone.createLinkRequest()]);
  expect(same).toBe(link);
  await phone.registerApproved(await alice.approveDevice(link, await phone.linkCode(link)));
});

test('a refused registration takes back what it wrote itself, and nothing that was written since', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const keyStore = memoryKeyStore();
  const early = clientOf(world, 'alice', 'phone', { keyStore });
  const [reached, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  world.before.set('registerDevice', async () => {
    world.before.delete('registerDevice');
    reached.resolve();
    await released.promise;
    throw refuse('ROOT_KEY_MISMATCH', 'another one was first');
  });
  const refused = early.register().catch((error: unknown) => error);
  await reached.promise;
  // The application was started anew meanwhile, over the same store.
  const phone = clientOf(world, 'alice', 'phone', { keyStore });
  const link = await phone.createLinkRequest();
  await phone.registerApproved(await alice.approveDevice(link, await phone.linkCode(link)));
  released.resolve();
  expect(await refused).toMatchObject({ reason: 'ROOT_KEY_MISMATCH' });
  await expectWhole(world, keyStore, 'phone');
});

test('a registration that was accepted is recognised after its request id was forgotten', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  loseAnswer(world, 'registerDevice');
  const options = { keyStore, ...noRetries };
  await expect(clientOf(world, 'alice', 'laptop', options).register()).rejects.toThrow('SHUTTING_DOWN');
  refuseAlways(world, 'registerDevice', 'DEVICE_ALREADY_REGISTERED');
  await clientOf(world, 'alice', 'laptop', options).register();
  await expectWhole(world, keyStore);
});

test('a reset that was accepted is recognised after its request id was forgotten', async () => {
  const world = new World();
  await firstDevice(world, 'alice', 'lost');
  const keyStore = memoryKeyStore();
  const options = { keyStore, ...noRetries };
  loseAnswer(world, 'registerDevice');
  await expect(clientOf(world, 'alice', 'laptop', options).resetIdentity()).rejects.toThrow('SHUTTING_DOWN');
  refuseAlways(world, 'registerDevice', 'DEVICE_LIST_CONFLICT');
  await clientOf(world, 'alice', 'laptop', options).resetIdentity();
  await expectWhole(world, keyStore);
});

test('a device has the certificate that it was registered with, when another one was made before it was answered', async () => {
  const world = new World();
  const text = await (await firstDevice(world, 'alice')).makeRecoveryKey();
  const keyStore = memoryKeyStore();
  const options = { keyStore, ...noRetries };
  loseAnswer(world, 'registerDevice');
  await expect(clientOf(world, 'alice', 'phone', options).recover(text)).rejects.toThrow('SHUTTING_DOWN');
  const later = { now: () => new Date(Date.now() + 60_000), after: () => () => {} };
  await clientOf(world, 'alice', 'phone', { ...options, clock: later }).recover(text);
  await expectWhole(world, keyStore, 'phone');
});

test('a change of the root key that was made is taken over after its request id was forgotten', async () => {
  const world = new World();
  const { alice, keyStore } = await aliceWithStore(world);
  await approvedDevice(world, alice, 'stolen');
  loseAnswer(world, 'changeRootKey');
  await expect(alice.changeRootKey({ keep: [] })).rejects.toThrow('SHUTTING_DOWN');
  refuseAlways(world, 'changeRootKey', 'DEVICE_LIST_CONFLICT');
  expect(await alice.changeRootKey({ keep: [] })).toEqual({
    rootKey: world.identities.logOf('alice').rootKey,
    revoked: ['stolen'],
  });
  await expectWhole(world, keyStore);
});

test('a change that is refused while the log stands still may yet be made: its root key is kept', async () => {
  const world = new World();
  const { alice, keyStore } = await aliceWithStore(world);
  let made: () => void = () => {};
  world.before.set('changeRootKey', ((request: Parameters<World['identities']['changeRootKey']>[1]) => {
    made = () => world.identities.changeRootKey({ userId: 'alice', deviceId: 'laptop' }, request);
    throw refuse('ROOT_KEY_MISMATCH', 'no');
  }) as never);
  await expect(alice.changeRootKey()).rejects.toMatchObject({ reason: 'ROOT_KEY_MISMATCH' });
  // The service makes it after all, and tells nobody.
  made();
  const calls = world.count('changeRootKey');
  const { rootKey } = await clientOf(world, 'alice', 'laptop', { keyStore }).changeRootKey();
  expect([rootKey, world.count('changeRootKey')]).toEqual([world.identities.logOf('alice').rootKey, calls]);
  await expectWhole(world, keyStore);
});

test('a refused change is forgotten once the log has gone another way', async () => {
  const world = new World();
  const { alice, keyStore } = await aliceWithStore(world);
  await approvedDevice(world, alice, 'phone');
  const asked: Uint8Array[] = [];
  world.before.set('changeRootKey', ((request: { rootKeyChange: { newRootKey: Uint8Array } }) => {
    asked.push(request.rootKeyChange.newRootKey);
    if (asked.length === 1) world.identities.revoke('alice', 'phone');
  }) as never);
  const { rootKey } = await alice.changeRootKey();
  expect(asked.length).toBe(2);
  expect(asked[0]).not.toEqual(rootKey);
  await expectWhole(world, keyStore);
});

test('two changes of the root key at once lose none, also when an answer is lost', async () => {
  const world = new World();
  const { alice, keyStore } = await aliceWithStore(world);
  loseAnswer(world, 'changeRootKey');
  const outcomes = await Promise.allSettled([alice.changeRootKey(), alice.changeRootKey()]);
  expect(outcomes.map(({ status }) => status)).toEqual(['rejected', 'fulfilled']);
  await expectWhole(world, keyStore);
});

test('a link request that is made during a change of the root key does not bring the old one back', async () => {
  const world = new World();
  const kept = memoryKeyStore();
  const [saving, saved] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const slow: KeyStore = {
    ...kept,
    async saveDevice(device) {
      if (device.linkSecret) {
        saving.resolve();
        await saved.promise;
      }
      await kept.saveDevice(device);
    },
  };
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore: slow });
  const link = alice.createLinkRequest();
  await saving.promise;
  const rotated = alice.changeRootKey();
  // Work on prekeys changes the same device, and waits for no change of identity.
  world.prekeys.lastResortPrekeyDue = true;
  const kemPrekeyId = (await kept.device())?.lastResortPrekeyId ?? 0;
  const answered = Promise.withResolvers<void>();
  world.after.set('rotateSignedPrekey', () => answered.resolve());
  const upkeep = alice.upkeep();
  await answered.promise;
  // By the time another call is answered, the new prekeys would be in the store if nothing kept them back.
  await alice.keyRequests();
  saved.resolve();
  await Promise.all([link, rotated, upkeep]);
  expect((await kept.device())?.lastResortPrekeyId).toBeGreaterThan(kemPrekeyId);
  await expectWhole(world, kept);
});

test('what a change leaves out is left out also when an earlier one was not answered', async () => {
  for (const when of ['before', 'after'] as const) {
    const world = new World();
    const { alice, keyStore } = await aliceWithStore(world);
    await approvedDevice(world, alice, 'phone');
    await approvedDevice(world, alice, 'stolen');
    loseAnswer(world, 'changeRootKey', when);
    await expect(alice.changeRootKey()).rejects.toThrow('SHUTTING_DOWN');
    const { rootKey, revoked } = await alice.changeRootKey({ keep: ['phone'] });
    expect(revoked).toEqual(['stolen']);
    expect(world.device('alice', 'stolen').revokedAt).toBeDefined();
    expect(world.device('alice', 'phone').revokedAt).toBeUndefined();
    expect(world.identities.logOf('alice').rootKey).toEqual(rootKey);
    await expectWhole(world, keyStore);
  }
});

test('a change that keeps what it should is not made twice', async () => {
  const world = new World();
  const { alice } = await aliceWithStore(world);
  await approvedDevice(world, alice, 'phone');
  await approvedDevice(world, alice, 'stolen');
  loseAnswer(world, 'changeRootKey');
  await expect(alice.changeRootKey({ keep: ['phone'] })).rejects.toThrow('SHUTTING_DOWN');
  const made = world.identities.logOf('alice').version;
  expect((await alice.changeRootKey({ keep: ['phone', 'laptop'] })).revoked).toEqual(['stolen']);
  expect(world.identities.logOf('alice').version).toBe(made);
});

test('a device to keep that the user does not have is told, before anything is changed', async () => {
  const world = new World();
  const { alice } = await aliceWithStore(world);
  await approvedDevice(world, alice, 'phone');
  await approvedDevice(world, alice, 'gone');
  await alice.revokeDevice('gone');
  const { version } = world.identities.logOf('alice');
  const refused = await alice.changeRootKey({ keep: ['Phone', 'gone', 'phone'] }).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(UnknownDevicesError);
  expect(refused).toMatchObject({ deviceIds: ['Phone', 'gone'] });
  expect([world.identities.logOf('alice').version, world.count('changeRootKey')]).toEqual([version, 0]);
});
