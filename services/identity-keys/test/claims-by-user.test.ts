import { randomUUID } from 'node:crypto';
import { toBinary } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import { ClaimPrekeyBundlesResponseSchema, NoBundleReason, PrekeyKind } from '@keytrail/contracts';
import { verifyBundle } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { statement, type Transaction } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { digestUsers } from '../src/domain/claim-request.ts';
import { claimPrekeyBundles, claimWaiting, DeviceListsMoved } from '../src/store/claims.ts';
import type { TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ replicas: 2 });
});
afterAll(() => service?.stop());

async function userWith(...deviceIds: string[]): Promise<TestDevice> {
  const [first = 'phone', ...further] = deviceIds;
  const { device } = await service.register({ userId: newUser(), deviceId: first });
  for (const deviceId of further) await service.register({ userId: device.userId, deviceId, rootKey: device.rootKey });
  return device;
}

function asStranger(options: { wire?: 'grpc' | 'web'; replica?: number } = {}) {
  return service.asRegistered({ userId: newUser(), deviceId: 'asking' }, options);
}

const unclaimed = statement(
  'test_unclaimed_of_user',
  `SELECT count(*) AS left FROM unclaimed_one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1`,
);

async function prekeysLeft(userId: string): Promise<bigint | undefined> {
  return (await service.db.query<{ left: bigint }>(unclaimed, [userId]))[0]?.left;
}

describe('a claim by users', () => {
  test.for(wires)(
    'brings a bundle of each device, by user and then by registration, and what a header says (%s)',
    async (wire) => {
      const alice = await userWith('phone', 'laptop', 'tablet');
      const bob = await userWith('phone');
      const nobody = newUser();
      await service.revoke(alice.userId, 'laptop');
      const client = await asStranger({ wire });
      const { results, users } = await client.claimPrekeyBundles({
        claimId: randomUUID(),
        userIds: [bob.userId, nobody, alice.userId],
      });
      expect(results.map(({ device }) => [device?.userId, device?.deviceId])).toEqual([
        [bob.userId, 'phone'],
        [alice.userId, 'phone'],
        [alice.userId, 'tablet'],
      ]);
      for (const { bundle, noBundleBecause } of results) {
        expect(noBundleBecause).toBe(NoBundleReason.UNSPECIFIED);
        expect(bundle?.kemPrekeyKind).toBe(PrekeyKind.ONE_TIME);
        const { rootKey } = bundle?.userId === bob.userId ? bob : alice;
        if (bundle) expect(verifyBundle(nodePrimitives, bundle, rootKey.publicKey).userId).toBe(bundle.userId);
      }
      expect(users.map(({ userId, deviceListVersion }) => [userId, deviceListVersion])).toEqual([
        [bob.userId, 1n],
        [nobody, 0n],
        [alice.userId, 4n],
      ]);
      expect(users[1]).toMatchObject({ rootKey: new Uint8Array(), logHead: new Uint8Array() });
      const { deviceLists } = await service.asService('session').getDevices({ userIds: [alice.userId] });
      expect(users[2]?.rootKey).toEqual(alice.rootKey.publicKey);
      expect(users[2]?.logHead).toEqual(deviceLists[0]?.logHead);
      expect(users[2]?.logHead).toHaveLength(32);
    },
  );

  test('tried again gets the same answer, whatever devices came and went since', async () => {
    const alice = await userWith('phone', 'laptop');
    const later = newUser();
    const client = await asStranger();
    const request = { claimId: randomUUID(), userIds: [alice.userId, later] };
    const first = await client.claimPrekeyBundles(request);
    await service.register({ userId: alice.userId, deviceId: 'tablet', rootKey: alice.rootKey });
    await service.revoke(alice.userId, 'laptop');
    await service.register({ userId: later, deviceId: 'phone' });
    const again = await client.claimPrekeyBundles(request);
    expect(toBinary(ClaimPrekeyBundlesResponseSchema, again)).toEqual(
      toBinary(ClaimPrekeyBundlesResponseSchema, first),
    );
    expect(first.users.map(({ deviceListVersion }) => deviceListVersion)).toEqual([2n, 0n]);
  });

  test('of users without devices stays one without devices', async () => {
    const userId = newUser();
    const client = await asStranger();
    const request = { claimId: randomUUID(), userIds: [userId] };
    const first = await client.claimPrekeyBundles(request);
    expect(first).toMatchObject({ results: [], users: [{ userId, deviceListVersion: 0n }] });
    await service.register({ userId, deviceId: 'phone' });
    expect(await client.claimPrekeyBundles(request)).toEqual(first);
  });

  test('at the same time, on two replicas, agrees and takes one key of each device', async () => {
    const { userId } = await userWith('phone', 'laptop');
    const caller = { userId: newUser(), deviceId: 'asking' };
    const clients = await Promise.all([0, 1, 0, 1].map((replica) => service.asRegistered(caller, { replica })));
    const request = { claimId: randomUUID(), userIds: [userId] };
    const [first, ...others] = await Promise.all(clients.map((client) => client.claimPrekeyBundles(request)));
    for (const other of others) expect(other).toEqual(first);
    expect(await prekeysLeft(userId)).toBe(4n);
  });

  test('under the id of a claim of other users, or of devices, is refused', async () => {
    const { userId } = await userWith('phone');
    const client = await asStranger();
    const claimId = randomUUID();
    await client.claimPrekeyBundles({ claimId, userIds: [userId] });
    for (const other of [{ userIds: [newUser()] }, { devices: [{ userId, deviceId: 'phone' }] }])
      expect(await refusalOf(client.claimPrekeyBundles({ claimId, ...other }))).toMatchObject({
        code: Code.AlreadyExists,
        reason: 'REQUEST_ID_REUSED',
        metadata: { request_id: claimId },
      });
  });

  test.for(wires)('and devices, or neither, is refused (%s)', async (wire) => {
    const client = await asStranger({ wire });
    const both = { userIds: ['a'], devices: [{ userId: 'a', deviceId: 'b' }] };
    for (const asked of [both, {}])
      expect(await refusalOf(client.claimPrekeyBundles({ claimId: randomUUID(), ...asked }))).toMatchObject({
        code: Code.InvalidArgument,
        reason: 'INVALID_FIELD',
      });
  });

  test('does not mix devices and versions of different lists: a list that moved takes nothing, at once or waiting', async () => {
    const { userId } = await userWith('phone');
    const claim = {
      caller: 'device:test/test',
      claimId: randomUUID(),
      devices: [{ userId, deviceId: 'phone' }],
      devicesDigest: digestUsers([userId]),
      users: [{ userId, version: 2n }],
    };
    const { signal } = new AbortController();
    await expect(claimPrekeyBundles(service.db, claim, { lowBelow: 0, signal })).rejects.toThrow(DeviceListsMoved);
    await expect(service.db.transaction((tx: Transaction) => claimWaiting(tx, claim))).rejects.toThrow(
      DeviceListsMoved,
    );
    expect(await prekeysLeft(userId)).toBe(3n);
  });

  test('that waits for a key which another claim holds records its users too', async () => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 1, kem: 1 });
    const { userId } = device;
    const client = await asStranger();
    const held = statement(
      'test_hold',
      'SELECT FROM unclaimed_one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1 FOR UPDATE OF unclaimed_one_time_prekeys',
    );
    const waiting = statement(
      'test_lock_waits',
      "SELECT count(*) AS waiting FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event <> 'advisory'",
    );
    const request = { claimId: randomUUID(), userIds: [userId] };
    const { answer } = await service.db.transaction(async (tx: Transaction) => {
      await tx.query(held, [userId]);
      const asked = client.claimPrekeyBundles(request);
      await vi.waitFor(async () => {
        const [row] = await service.db.query<{ waiting: bigint }>(waiting, []);
        expect(row?.waiting).toBe(1n);
      }, 20_000);
      return { answer: asked };
    });
    const first = await answer;
    expect(first.results[0]?.bundle?.oneTimePrekey?.keyId).toBe(1);
    expect(await client.claimPrekeyBundles(request)).toEqual(first);
    expect(first.users).toMatchObject([{ userId, deviceListVersion: 1n }]);
  });
});

test('devices that come and go during claims by users: each answer is of one list', async () => {
  const alice = await userWith('d0');
  const client = await asStranger();
  const versions = new Map<bigint, number>([[1n, 1]]);
  const growing = (async () => {
    for (let i = 1; i <= 8; i++) {
      await service.register({ userId: alice.userId, deviceId: `d${i}`, rootKey: alice.rootKey, oneTime: 40, kem: 40 });
      versions.set(BigInt(i + 1), i + 1);
    }
  })();
  let done = false;
  const finished = growing.finally(() => {
    done = true;
  });
  const seen = new Set<bigint>();
  while (!done) {
    const { results, users } = await client.claimPrekeyBundles({ claimId: randomUUID(), userIds: [alice.userId] });
    const version = users[0]?.deviceListVersion ?? 0n;
    seen.add(version);
    expect(results).toHaveLength(Number(version));
  }
  await finished;
  expect(seen.size).toBeGreaterThan(1);
});

test('more devices than a claim takes are refused, not cut off, and waiting does not help', async () => {
  const small = await startIdentityKeys({ settings: { KEYTRAIL_MAX_DEVICES_PER_CLAIM: '2' } });
  try {
    const { device } = await small.register({ userId: newUser(), deviceId: 'd0' });
    for (const deviceId of ['d1', 'd2'])
      await small.register({ userId: device.userId, deviceId, rootKey: device.rootKey });
    const client = await small.asRegistered({ userId: newUser(), deviceId: 'asking' });
    const { userId } = device;
    const named = ['d0', 'd1', 'd2'].map((deviceId) => ({ userId, deviceId }));
    for (const asked of [{ userIds: [userId] }, { devices: named }]) {
      const refusal = await refusalOf(client.claimPrekeyBundles({ claimId: randomUUID(), ...asked }));
      expect(refusal).toMatchObject({
        code: Code.ResourceExhausted,
        reason: 'LIMIT_EXCEEDED',
        metadata: { limit: '2', scope: 'devices in one claim' },
      });
      expect(refusal.retryAfterMs).toBeUndefined();
    }
    expect((await client.claimPrekeyBundles({ claimId: randomUUID(), devices: named.slice(1) })).results).toHaveLength(
      2,
    );
  } finally {
    await small.stop();
  }
});

describe('why there is no bundle', () => {
  test.for(wires)('is one answer to strangers, and told to those who share a conversation (%s)', async (wire) => {
    const { userId } = await userWith('phone', 'gone');
    await service.revoke(userId, 'gone');
    const caller = newUser();
    const client = await service.asRegistered({ userId: caller, deviceId: 'asking' }, { wire });
    const reasons = async () => {
      const devices = ['gone', 'none'].map((deviceId) => ({ userId, deviceId }));
      devices.push({ userId: `x${userId.slice(1)}`, deviceId: 'gone' });
      const { results } = await client.claimPrekeyBundles({ claimId: randomUUID(), devices });
      return results.map(({ noBundleBecause }) => noBundleBecause);
    };
    const uniform = NoBundleReason.NOT_FOUND_OR_NOT_PERMITTED;
    expect(await reasons()).toEqual([uniform, uniform, uniform]);
    service.peers.share(caller, userId);
    expect(await reasons()).toEqual([NoBundleReason.DEVICE_REVOKED, NoBundleReason.DEVICE_UNKNOWN, uniform]);
  });

  test('tells strangers nothing of a user whose devices are all revoked: it looks like one that does not exist', async () => {
    const { userId } = await userWith('phone');
    await service.revoke(userId);
    const caller = newUser();
    const client = await service.asRegistered({ userId: caller, deviceId: 'asking' });
    const told = async (asked: string, claimId: string = randomUUID()) => {
      const answer = await client.claimPrekeyBundles({ claimId, userIds: [asked] });
      for (const user of answer.users) user.userId = '';
      return toBinary(ClaimPrekeyBundlesResponseSchema, answer);
    };
    const claimId = randomUUID();
    const first = await told(userId, claimId);
    expect(first).toEqual(await told(`x${userId.slice(1)}`));
    service.peers.share(caller, userId);
    expect(await told(userId, claimId)).toEqual(first);
    const { users } = await client.claimPrekeyBundles({ claimId: randomUUID(), userIds: [userId] });
    expect(users[0]).toMatchObject({ deviceListVersion: 2n });
  });

  test('costs no call to conversation while every device has a bundle', async () => {
    const { userId } = await userWith('phone');
    const client = await asStranger();
    service.peers.asked.length = 0;
    await client.claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId: 'phone' }] });
    await client.claimPrekeyBundles({ claimId: randomUUID(), userIds: [userId] });
    expect(service.peers.asked).toEqual([]);
  });
});
