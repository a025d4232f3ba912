import { create } from '@bufbuild/protobuf';
import { DeclineReason, type Device, DeviceSchema } from '@keytrail/contracts';
import { certifyDevice, createKemPrekey, createRootKey, createSignedPrekey } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { expect, test } from 'vitest';
import { DeviceListRefusedError } from '../src/index.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

/** Puts a device into a user's list, and into the log, that the user's root key never certified. */
function smuggle(world: World, userId: string, deviceId: string): Device {
  const rootKey = { ...createRootKey(nodePrimitives), publicKey: world.identities.logOf(userId).rootKey };
  const identityKey = nodePrimitives.x25519.keyPair();
  const signingKey = nodePrimitives.ed25519.keyPair();
  const keys = { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
  const signer = { userId, deviceId, signingKey };
  const device = create(DeviceSchema, {
    ...keys,
    certificate: certifyDevice(nodePrimitives, rootKey, keys, new Date()),
    signedPrekey: createSignedPrekey(nodePrimitives, signer, 1).upload,
    lastResortPrekey: createKemPrekey(nodePrimitives, signer, 2, 'kem-last-resort').upload,
  });
  const log = world.identities.logOf(userId);
  log.added(device);
  device.addedInVersion = log.version;
  world.devices.get(userId)?.push(device);
  return device;
}

test('a device that no root key certifies gets no key from a holder, whatever the server says', async () => {
  const world = new World();
  const [alice] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  smuggle(world, 'bob', 'intruder');
  await alice.attach();
  const declined = next(alice, 'offerDeclined');
  world.openRequest({ userId: 'bob', deviceId: 'intruder' }, conversationId, sessionId, 1);
  expect(await declined).toMatchObject({ reason: 'UNCERTIFIED', requester: { userId: 'bob', deviceId: 'intruder' } });
  await alice.close();
  expect(world.session(sessionId).envelopes.has('bob intruder')).toBe(false);
  expect(world.declined).toMatchObject([{ by: 'alice laptop', reason: DeclineReason.UNCERTIFIED }]);
  expect(world.claims.filter(({ devices }) => devices.includes('bob intruder'))).toEqual([]);
});

test('a device that no root key certifies is refused with the whole list, and nothing is sealed', async () => {
  const world = new World();
  const [alice] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  smuggle(world, 'bob', 'intruder');
  const refused = next(alice, 'deviceListRefused');
  await expect(alice.createConversation({ kind: 'direct', members: ['bob'] })).rejects.toThrow(DeviceListRefusedError);
  expect(await refused).toEqual({ userId: 'bob', problem: 'certificate', version: 2n, remembered: 0n });
  expect([world.sessions.size, await alice.rootKeyOf('bob')]).toEqual([0, undefined]);
});

test('a changed root key is told, and gets nothing unless it is accepted', async () => {
  const world = new World();
  const asked: string[] = [];
  let verdict: 'accept' | 'refuse' = 'refuse';
  const rootKeyPolicy = {
    onChange: ({ userId }: { userId: string }) => {
      asked.push(userId);
      return verdict;
    },
  };
  const alice = await firstDevice(world, 'alice', 'laptop', { rootKeyPolicy });
  await firstDevice(world, 'bob');
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  const pinned = await alice.rootKeyOf('bob');

  await clientOf(world, 'bob', 'new-phone').resetIdentity();
  const changed = next(alice, 'rootKeyChanged');
  const refused = await alice.rotate(conversationId);
  expect(refused.withheld).toEqual([{ device: { userId: 'bob', deviceId: 'new-phone' }, reason: 'ROOT_KEY_CHANGED' }]);
  const { offered, accepted, how } = await changed;
  expect({ accepted, how, pinned: await alice.rootKeyOf('bob') }).toEqual({ accepted: false, how: 'reset', pinned });

  await alice.rotate(conversationId);
  expect(asked).toEqual(['bob']);

  verdict = 'accept';
  await alice.acceptRootKey('bob', offered);
  expect((await alice.rotate(conversationId)).withheld).toEqual([]);
});

test('a holder declines for a user whose root key changed', async () => {
  const world = new World();
  const [alice] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await clientOf(world, 'bob', 'new-phone').resetIdentity();
  await alice.attach();
  const declined = next(alice, 'offerDeclined');
  world.openRequest({ userId: 'bob', deviceId: 'new-phone' }, conversationId, sessionId, 1);
  expect((await declined).reason).toBe('ROOT_KEY_CHANGED');
  await alice.close();
});

test('a holder declines for a user whom the signed header does not name', async () => {
  const world = new World();
  const [alice] = [
    await firstDevice(world, 'alice'),
    await firstDevice(world, 'bob'),
    await firstDevice(world, 'mallory'),
  ];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await alice.attach();
  const declined = next(alice, 'offerDeclined');
  world.openRequest({ userId: 'mallory', deviceId: 'laptop' }, conversationId, sessionId, 1);
  expect((await declined).reason).toBe('NOT_ENTITLED');
  await alice.close();
});

test('where history is shared, later members may have earlier epochs', async () => {
  const world = new World();
  const [alice] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const carol = await firstDevice(world, 'carol');
  const { conversationId, sessionId } = await alice.createConversation({
    kind: 'group',
    members: ['bob'],
    historyPolicy: 'shared',
  });
  await alice.addMembers(conversationId, ['carol']);
  await Promise.all([alice.attach(), carol.attach()]);
  expect((await carol.openSession(conversationId, sessionId)).origin).toBe('recovered');
  await Promise.all([alice.close(), carol.close()]);
});

test('a holder declines for a revoked device, and for one that the application does not trust', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', { deviceTrust: ({ deviceId }) => deviceId !== 'tablet' });
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [] });
  await approvedDevice(world, alice, 'phone');
  await approvedDevice(world, alice, 'tablet');
  world.identities.revoke('alice', 'phone');
  await alice.attach();
  for (const [deviceId, reason] of [
    ['phone', 'NOT_ENTITLED'],
    ['tablet', 'NOT_TRUSTED'],
  ] as const) {
    const declined = next(alice, 'offerDeclined');
    world.openRequest({ userId: 'alice', deviceId }, conversationId, sessionId, 1);
    expect((await declined).reason).toBe(reason);
  }
  await alice.close();
});

test('a holder that has no key says so', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [] });
  const phone = await approvedDevice(world, alice, 'phone');
  const tablet = await approvedDevice(world, alice, 'tablet');
  await phone.attach();
  const declined = next(phone, 'offerDeclined');
  await tablet.requestKey(conversationId, sessionId);
  expect((await declined).reason).toBe('KEY_NOT_HELD');
  await phone.close();
});

test('a link can be approved by the same user only, and opened by the device that showed it only', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const phone = clientOf(world, 'alice', 'phone');
  const link = await phone.createLinkRequest();
  expect(await phone.createLinkRequest()).toBe(link);
  expect(link.length).toBeLessThan(2953);
  const code = await phone.linkCode(link);
  await expect(bob.approveDevice(link, code)).rejects.toThrow('recipient');
  await expect(alice.approveDevice(`${link}A`, code)).rejects.toThrow('keytrail-link');
  const approval = await alice.approveDevice(link, code);
  const tablet = clientOf(world, 'alice', 'tablet');
  await tablet.createLinkRequest();
  await expect(tablet.registerApproved(approval)).rejects.toThrow('recipient');
  await phone.registerApproved(approval);
  await phone.registerApproved(approval);
  expect(world.devices.get('alice')?.map(({ deviceId }) => deviceId)).toEqual(['laptop', 'phone']);
});

test('a further device cannot register by itself, and can be approved after it tried', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const phone = clientOf(world, 'alice', 'phone');
  await expect(phone.register()).rejects.toMatchObject({ reason: 'ROOT_KEY_MISMATCH', metadata: { user_id: 'alice' } });
  const link = await phone.createLinkRequest();
  await phone.registerApproved(await alice.approveDevice(link, await phone.linkCode(link)));
  expect(await phone.rootKeyOf('alice')).toEqual(await alice.rootKeyOf('alice'));
});
