import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { GetDevicesResponse } from '@keytrail/contracts';
import { certifyDevice, type KeyPair } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import {
  type KeyStore,
  type KeytrailClient,
  memoryKeyStore,
  RegisteredDifferentlyError,
  SafetyNumberOfOneselfError,
} from '../src/index.ts';
import { approvalText, parseApproval } from '../src/link-text.ts';
import { approvedDevice, clientOf, firstDevice } from './people.ts';
import { World } from './world.ts';

/** Alice's laptop changed the root key, and her phone stayed. */
async function stayingPhone() {
  const world = new World();
  const [laptopStore, keyStore] = [memoryKeyStore(), memoryKeyStore()];
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore: laptopStore });
  const phone = await approvedDevice(world, alice, 'phone', { keyStore });
  const { rootKey } = await alice.changeRootKey();
  return { world, alice, laptopStore, phone, keyStore, rootKey };
}

async function linkAgain(phone: KeytrailClient, alice: KeytrailClient) {
  const link = await phone.createLinkRequest();
  return alice.approveDevice(link, await phone.linkCode(link));
}

async function rootKeyIn(store: KeyStore): Promise<KeyPair> {
  const { rootKey } = (await store.device()) ?? {};
  if (!rootKey) throw new Error('there is none');
  return rootKey;
}

function remedyOf(client: KeytrailClient): Promise<string> {
  return client.upkeep().then(
    () => 'none',
    (error: unknown) => {
      if (error instanceof RegisteredDifferentlyError) return error.remedy;
      throw error;
    },
  );
}

test('a device that stayed over a change of the root key is told to be linked again, and needs no more then', async () => {
  const { alice, phone } = await stayingPhone();
  expect(await remedyOf(phone)).toBe('link-again');
  await phone.registerApproved(await linkAgain(phone, alice));
  expect([await remedyOf(phone), await remedyOf(alice)]).toEqual(['none', 'none']);
});

test('a device whose own change of the root key was not answered is told to call again', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', { retry: { retries: 0 } });
  world.after.set('changeRootKey', () => {
    world.after.delete('changeRootKey');
    throw refuse('SHUTTING_DOWN', 'draining');
  });
  await expect(alice.changeRootKey()).rejects.toThrow('SHUTTING_DOWN');
  expect(await remedyOf(alice)).toBe('change-root-key-again');
  await alice.changeRootKey();
  expect(await remedyOf(alice)).toBe('none');
});

test('a device whose own change came too late is told to be linked again, and can change the root key then', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const phone = await approvedDevice(world, alice, 'phone', { retry: { retries: 0 } });
  world.before.set('changeRootKey', () => {
    world.before.delete('changeRootKey');
    throw refuse('SHUTTING_DOWN', 'draining');
  });
  await expect(phone.changeRootKey()).rejects.toThrow('SHUTTING_DOWN');
  await alice.changeRootKey();
  expect(await remedyOf(phone)).toBe('link-again');
  await phone.registerApproved(await linkAgain(phone, alice));
  const { rootKey } = await phone.changeRootKey();
  expect([world.identities.logOf('alice').rootKey, await remedyOf(phone)]).toEqual([rootKey, 'none']);
});

test('a device under whose name other keys are registered is told to register anew, also after a change of the root key', async () => {
  const { world, keyStore } = await stayingPhone();
  const stored = await keyStore.device();
  const elsewhere = memoryKeyStore();
  const other = clientOf(new World(), 'alice', 'phone', { keyStore: elsewhere });
  await other.register();
  const keys = await elsewhere.device();
  if (!stored || !keys) throw new Error('no keys');
  for (const changed of [{ identityKey: keys.identityKey }, { signingKey: keys.signingKey }]) {
    await keyStore.saveDevice({ ...stored, ...changed });
    expect(await remedyOf(clientOf(world, 'alice', 'phone', { keyStore }))).toBe('register-anew');
  }
});

test('a link that is shown outlives a rotation of the prekey in it', async () => {
  const { world, alice, phone, rootKey } = await stayingPhone();
  const link = await phone.createLinkRequest();
  world.prekeys.lastResortPrekeyDue = true;
  world.prekeys.keepOldUntil = new Date('2100-01-01T00:00:00Z');
  await phone.replenishPrekeys();
  expect(await phone.createLinkRequest()).toBe(link);
  await phone.registerApproved(await alice.approveDevice(link, await phone.linkCode(link)));
  expect(await phone.rootKeyOf('alice')).toEqual(rootKey);
});

test('a link whose prekey is gone is shown anew, and the old one says so', async () => {
  const { world, alice, phone, keyStore } = await stayingPhone();
  const link = await phone.createLinkRequest();
  const approval = await alice.approveDevice(link, await phone.linkCode(link));
  const keyId = (await keyStore.device())?.lastResortPrekeyId ?? 0;
  world.prekeys.lastResortPrekeyDue = true;
  await phone.replenishPrekeys();
  await keyStore.removePrekeys([{ kind: 'kem-last-resort', keyId }]);
  await expect(phone.registerApproved(approval)).rejects.toThrow('show a new one');
  expect(await phone.createLinkRequest()).not.toBe(link);
  await phone.registerApproved(await linkAgain(phone, alice));
  expect(await remedyOf(phone)).toBe('none');
});

test('a staying device takes over the root key by the recovery key, too; at once it has nothing to do', async () => {
  const { world, alice, phone, rootKey } = await stayingPhone();
  const text = await alice.makeRecoveryKey();
  await phone.recover(text);
  expect([await phone.rootKeyOf('alice'), await remedyOf(phone)]).toEqual([rootKey, 'none']);
  const asked = world.count('getRecovery');
  await phone.recover(text);
  expect(world.count('getRecovery')).toBe(asked);
});

test('a root key is not current because an answer without a log says so', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const text = await alice.makeRecoveryKey();
  const old = world.identities.recoveries.get('alice');
  await alice.changeRootKey();
  if (!old) throw new Error('no recovery');
  world.identities.recoveries.set('alice', old);
  world.after.set('getDevices', ((answer: GetDevicesResponse) => {
    for (const list of answer.deviceLists) {
      Object.assign(list, { version: 0n, devices: [], logHead: new Uint8Array(), rootKey: old.rootKey });
    }
  }) as never);
  await expect(clientOf(world, 'alice', 'anew').recover(text)).rejects.toThrow();
  expect(world.count('registerDevice')).toBe(1);
});

test('an approval whose certificate is another root key’s, or another device’s, is refused', async () => {
  const { alice, laptopStore, phone, keyStore, world } = await stayingPhone();
  const stored = await keyStore.device();
  const approval = parseApproval(await linkAgain(phone, alice));
  const other = await rootKeyIn(keyStore);
  const root = await rootKeyIn(laptopStore);
  if (!stored) throw new Error('no device');
  const { userId, deviceId, identityKey, signingKey } = stored;
  const keys = { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
  const now = new Date();
  const lies: [string, typeof approval.certificate][] = [
    ['root-key', certifyDevice(nodePrimitives, other, keys, now)],
    ['signature', certifyDevice(nodePrimitives, root, { ...keys, deviceId: 'other' }, now)],
    ['signature', { ...approval.certificate, certifiedAt: timestampFromMs(now.getTime() + 1_000) }],
  ];
  for (const [problem, certificate] of lies) {
    await expect(phone.registerApproved(approvalText({ ...approval, certificate }))).rejects.toMatchObject({ problem });
  }
  expect((await rootKeyIn(keyStore)).publicKey).toEqual(other.publicKey);
  await phone.registerApproved(approvalText(approval));
  expect(world.count('registerDevice')).toBe(2);
});

test('a device takes over no certificate that is for other keys than it has', async () => {
  const { world, alice, keyStore } = await stayingPhone();
  const stored = await keyStore.device();
  if (!stored) throw new Error('no device');
  await keyStore.saveDevice({ ...stored, signingKey: nodePrimitives.ed25519.keyPair() });
  const changed = clientOf(world, 'alice', 'phone', { keyStore });
  const approval = await linkAgain(changed, alice);
  await expect(changed.registerApproved(approval)).rejects.toMatchObject({ problem: 'signature' });
  expect((await rootKeyIn(keyStore)).publicKey).toEqual(stored.rootKey?.publicKey);
});

test('a new device sends no certificate that does not certify it', async () => {
  const world = new World();
  const laptopStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore: laptopStore });
  const phone = clientOf(world, 'alice', 'phone');
  const approval = parseApproval(await linkAgain(phone, alice));
  const certificate = { ...approval.certificate, certifiedAt: timestampFromMs(1_000) };
  await expect(phone.registerApproved(approvalText({ ...approval, certificate }))).rejects.toMatchObject({
    problem: 'signature',
  });
  expect(world.count('registerDevice')).toBe(1);
  await phone.registerApproved(approvalText(approval));
});

test('a safety number with oneself is told to be none', async () => {
  const alice = await firstDevice(new World(), 'alice');
  await expect(alice.safetyNumber('alice')).rejects.toThrow(SafetyNumberOfOneselfError);
});
