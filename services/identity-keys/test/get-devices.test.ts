import { toBinary } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import { DeviceCertificateSchema } from '@keytrail/contracts';
import { verifyDevice } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({
    settings: { KEYTRAIL_MAX_DEVICES_PER_ANSWER: '3', KEYTRAIL_MAX_DEVICES_EVER_PER_USER: '3' },
  });
});
afterAll(() => service?.stop());

test.for(wires)(
  'device lists come in the order asked, devices in the order they were added, keys as uploaded (%s)',
  async (wire) => {
    const [alice, bob, nobody] = [newUser(), newUser(), newUser()];
    const { device: phone, registration } = makeDevice({
      userId: alice,
      deviceId: 'phone',
      certifiedAt: new Date(1_234_567_890_123),
    });
    const client = await service.asDevice(phone, { wire });
    await client.registerDevice(registration);
    await service.register({ userId: alice, deviceId: 'laptop', rootKey: phone.rootKey });
    const { device: bobs } = await service.register({ userId: bob, deviceId: 'phone' });
    service.peers.share(alice, bob);

    const { deviceLists } = await client.getDevices({ userIds: [bob, nobody, alice] });
    expect(deviceLists.map(({ userId, version }) => [userId, version])).toEqual([
      [bob, 1n],
      [nobody, 0n],
      [alice, 2n],
    ]);
    const [ofBob, ofNobody, ofAlice] = deviceLists;
    expect(ofBob?.rootKey).toEqual(bobs.rootKey.publicKey);
    expect(ofNobody).toMatchObject({ rootKey: new Uint8Array(), devices: [] });
    expect(ofAlice?.devices.map(({ deviceId, addedInVersion }) => [deviceId, addedInVersion])).toEqual([
      ['phone', 1n],
      ['laptop', 2n],
    ]);
    const stored = ofAlice?.devices[0];
    if (!stored?.certificate || !registration.certificate) throw new Error('no device');
    expect(stored).toMatchObject({
      userId: alice,
      identityKey: registration.identityKey,
      signingKey: registration.signingKey,
      signedPrekey: registration.signedPrekey,
      lastResortPrekey: registration.lastResortPrekey,
    });
    expect(toBinary(DeviceCertificateSchema, stored.certificate)).toEqual(
      toBinary(DeviceCertificateSchema, registration.certificate),
    );
    expect(verifyDevice(nodePrimitives, stored, phone.rootKey.publicKey).deviceId).toBe('phone');
  },
);

test('revoked devices are left out unless they are asked for', async () => {
  const userId = newUser();
  const { device } = await service.register({ userId, deviceId: 'a' });
  await service.register({ userId, deviceId: 'b', rootKey: device.rootKey });
  await service.revoke(userId, 'a');
  const client = service.asService('session');
  const current = await client.getDevices({ userIds: [userId] });
  expect(current.deviceLists[0]?.devices.map(({ deviceId }) => deviceId)).toEqual(['b']);
  const all = await client.getDevices({ userIds: [userId], includeRevoked: true });
  expect(all.deviceLists[0]?.devices.map(({ deviceId, revokedAt }) => [deviceId, revokedAt !== undefined])).toEqual([
    ['a', true],
    ['b', false],
  ]);
  await service.revoke(userId, 'b');
  const none = await client.getDevices({ userIds: [userId] });
  expect(none.deviceLists).toMatchObject([{ version: 4n, rootKey: device.rootKey.publicKey, devices: [] }]);
});

test('a thousand users are one answer', async () => {
  const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
  const userIds = [...Array.from({ length: 999 }, (_, i) => `nobody-${i}`), device.userId];
  const { deviceLists } = await service.asService('session').getDevices({ userIds });
  expect(deviceLists.map(({ userId }) => userId)).toEqual(userIds);
  expect(deviceLists.at(-1)?.devices).toHaveLength(1);
});

test('more devices than an answer holds are refused, not cut off', async () => {
  const userId = newUser();
  const { device } = await service.register({ userId, deviceId: 'd0' });
  for (const deviceId of ['d1', 'd2']) await service.register({ userId, deviceId, rootKey: device.rootKey });
  const other = (await service.register({ userId: newUser(), deviceId: 'phone' })).device.userId;
  const client = service.asService('session');
  expect((await client.getDevices({ userIds: [userId] })).deviceLists[0]?.devices).toHaveLength(3);
  expect(await refusalOf(client.getDevices({ userIds: [userId, other] }))).toMatchObject({
    code: Code.ResourceExhausted,
    reason: 'LIMIT_EXCEEDED',
    metadata: { limit: '3' },
  });
});
