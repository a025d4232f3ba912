import { create } from '@bufbuild/protobuf';
import { DeviceLogKind, DeviceLogPositionSchema, RevokedBy } from '@keytrail/contracts';
import {
  compareDeviceList,
  createRootKey,
  deviceLogEntryHash,
  emptyDeviceLog,
  verifyDeviceLog,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ replicas: 2, settings: { KEYTRAIL_MAX_LOG_ENTRIES_PER_ANSWER: '4' } });
});
afterAll(() => service?.stop());

async function registerAll(userId: string, deviceIds: readonly string[]) {
  const rootKey = createRootKey(nodePrimitives);
  const registered = [];
  for (const deviceId of deviceIds)
    registered.push(await service.register({ userId, deviceId, rootKey, oneTime: 1, kem: 1 }));
  return registered;
}

const from = (userId: string, afterVersion = 0n) => create(DeviceLogPositionSchema, { userId, afterVersion });

describe('the log of a user’s devices', () => {
  test.for(wires)(
    'has an entry for each change, hashed as clients hash it, and GetDevices names its head (%s)',
    async (wire) => {
      const userId = newUser();
      const [first, second] = await registerAll(userId, ['phone', 'laptop']);
      if (!first || !second) throw new Error('no devices');
      await service.revoke(userId, 'laptop');
      const client = await service.asDevice(first.device, { wire });
      const [log] = (await client.listDeviceLog({ users: [from(userId)] })).deviceLogs;
      const [list] = (await client.getDevices({ userIds: [userId], includeRevoked: true })).deviceLists;
      if (!log || !list) throw new Error('no log');
      expect(log.entries.map(({ version, kind, deviceId }) => [version, kind, deviceId])).toEqual([
        [1n, DeviceLogKind.DEVICE_ADDED, 'phone'],
        [2n, DeviceLogKind.DEVICE_ADDED, 'laptop'],
        [3n, DeviceLogKind.DEVICE_REVOKED, 'laptop'],
      ]);
      for (const entry of log.entries) expect(entry.hash).toEqual(deviceLogEntryHash(userId, entry));
      expect(log.entries[2]?.revocation).toMatchObject({ by: RevokedBy.OPERATOR, revokingDeviceId: '' });
      expect(log).toMatchObject({ userId, version: 3n, more: false });
      expect(first.response.logHead).toEqual(log.entries[0]?.hash);
      expect(second.response.logHead).toEqual(log.entries[1]?.hash);
      expect(list).toMatchObject({ version: 3n, logHead: log.logHead });
      compareDeviceList(verifyDeviceLog(nodePrimitives, emptyDeviceLog(userId), log.entries), list);
    },
  );

  test('is told from a version on, cut where the answer is full, and goes on from there', async () => {
    const [ann, bob, nobody] = [newUser(), newUser(), newUser()];
    await registerAll(ann, ['a', 'b', 'c']);
    await registerAll(bob, ['a', 'b', 'c']);
    const client = service.asService('session');
    const { deviceLogs } = await client.listDeviceLog({ users: [from(ann, 1n), from(nobody), from(bob)] });
    expect(
      deviceLogs.map((log) => [log.userId, log.entries.map(({ version }) => version), log.version, log.more]),
    ).toEqual([
      [ann, [2n, 3n], 3n, false],
      [nobody, [], 0n, false],
      [bob, [1n, 2n], 3n, true],
    ]);
    expect(deviceLogs[1]?.logHead).toEqual(new Uint8Array());
    const rest = await client.listDeviceLog({ users: [from(bob, 2n), from(ann, 3n), from(nobody, 2n ** 63n - 1n)] });
    expect(rest.deviceLogs.map((log) => [log.entries.map(({ version }) => version), log.more])).toEqual([
      [[3n], false],
      [[], false],
      [[], false],
    ]);
    expect(rest.deviceLogs[0]?.logHead).toEqual(rest.deviceLogs[0]?.entries[0]?.hash);
    const beyond = await client.listDeviceLog({ users: [from(ann, 2n ** 63n - 1n), from(bob)] });
    expect(beyond.deviceLogs.map(({ entries, more }) => [entries.length, more])).toEqual([
      [0, false],
      [3, false],
    ]);
  });

  test('of strangers looks like that of users without devices', async () => {
    const [ann, bob] = [newUser(), newUser()];
    const [anns] = await registerAll(ann, ['phone']);
    await registerAll(bob, ['phone']);
    if (!anns) throw new Error('no device');
    const client = await service.asDevice(anns.device);
    const ask = async () => (await client.listDeviceLog({ users: [from(bob)] })).deviceLogs[0];
    expect(await ask()).toMatchObject({ userId: bob, entries: [], version: 0n, more: false });
    service.peers.share(ann, bob);
    expect(await ask()).toMatchObject({ userId: bob, version: 1n });
  });

  test('is asked for once per user', async () => {
    const users = [from('ann'), from('bob'), from('ann', 3n)];
    expect(await refusalOf(service.asService('session').listDeviceLog({ users }))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'users[2].user_id' },
    });
  });

  test('is a chain without gaps when devices register and are revoked at the same time', async () => {
    const userId = newUser();
    const rootKey = createRootKey(nodePrimitives);
    await registerAll(userId, []);
    await service.register({ userId, deviceId: 'd', rootKey, oneTime: 1, kem: 1 });
    const devices = Array.from({ length: 10 }, (_, i) =>
      makeDevice({ userId, deviceId: `d${i}`, rootKey, oneTime: 1, kem: 1 }),
    );
    await Promise.all(
      devices.map(async ({ device, registration }, i) => {
        const client = await service.asDevice(device, { replica: i % 2 });
        await client.registerDevice(registration);
        if (i % 2 === 0) await service.revoke(userId, device.deviceId);
      }),
    );
    const client = service.asService('session');
    let state = emptyDeviceLog(userId);
    for (let more = true; more; ) {
      const [log] = (await client.listDeviceLog({ users: [from(userId, state.version)] })).deviceLogs;
      if (!log) throw new Error('no log');
      state = verifyDeviceLog(nodePrimitives, state, log.entries);
      more = log.more;
    }
    expect(state.version).toBe(16n);
    const [list] = (await client.getDevices({ userIds: [userId], includeRevoked: true })).deviceLists;
    if (!list) throw new Error('no list');
    compareDeviceList(state, list);
    expect(list.devices.filter(({ revokedAt }) => revokedAt)).toHaveLength(5);
  });
});
