import { randomUUID } from 'node:crypto';
import { toBinary } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import { ClaimPrekeyBundlesResponseSchema, NoBundleReason } from '@keytrail/contracts';
import { statement } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { purgeClaimPermissions } from '../src/store/claim-permissions.ts';
import type { TestDevice } from './device-keys.ts';
import {
  type IdentityKeysClient,
  type IdentityKeysUnderTest,
  newUser,
  startIdentityKeys,
  wires,
} from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({
    settings: { KEYTRAIL_CLAIM_POLICY: 'shared-or-permitted', KEYTRAIL_SHARED_USERS_REMEMBERED_MS: '0' },
  });
});
afterAll(() => service?.stop());

const inAnHour = () => timestampFromDate(new Date(Date.now() + 3_600_000));

async function newDevice(): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone' })).device;
}

function claim(
  client: IdentityKeysClient,
  { userId, deviceId }: TestDevice,
  more: { claimId?: string; keyRequestId?: string } = {},
) {
  return client.claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId }], ...more });
}

async function permit(userId: string, targetUserId: string, expiresAt?: ReturnType<typeof inAnHour>): Promise<void> {
  const operator = await service.asOperator();
  await operator.setClaimPermission({ requestId: randomUUID(), userId, targetUserId, ...(expiresAt && { expiresAt }) });
}

const unclaimed = statement(
  'test_unclaimed_there',
  'SELECT count(*) AS left FROM unclaimed_one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1',
);
async function prekeysLeft({ userId }: TestDevice): Promise<bigint | undefined> {
  return (await service.db.query<{ left: bigint }>(unclaimed, [userId]))[0]?.left;
}

test.for(wires)(
  'who may not claim gets one answer for what exists and for what does not, byte for byte (%s)',
  async (wire) => {
    const { userId } = await newDevice();
    const gone = await newDevice();
    await service.revoke(gone.userId);
    const client = await service.asRegistered({ userId: newUser(), deviceId: 'asking' }, { wire });
    const answerFor = async (asked: { userId: string }, byUser: boolean) => {
      const claimId = randomUUID();
      const devices = [{ userId: asked.userId, deviceId: 'phone' }];
      const answer = await client.claimPrekeyBundles(
        byUser ? { claimId, userIds: [asked.userId] } : { claimId, devices },
      );
      for (const { device } of answer.results) if (device) device.userId = '';
      for (const user of answer.users) user.userId = '';
      return answer;
    };
    for (const byUser of [false, true]) {
      const [existing, revoked, unknown] = await Promise.all(
        [userId, gone.userId, newUser()].map((each) => answerFor({ userId: each }, byUser)),
      );
      if (!existing || !revoked || !unknown) throw new Error('an answer is missing');
      const bytes = toBinary(ClaimPrekeyBundlesResponseSchema, unknown);
      expect(toBinary(ClaimPrekeyBundlesResponseSchema, existing)).toEqual(bytes);
      expect(toBinary(ClaimPrekeyBundlesResponseSchema, revoked)).toEqual(bytes);
      if (byUser) expect(unknown).toMatchObject({ results: [], users: [{ deviceListVersion: 0n }] });
      else expect(unknown.results[0]?.noBundleBecause).toBe(NoBundleReason.NOT_FOUND_OR_NOT_PERMITTED);
    }
    expect(await prekeysLeft({ userId } as TestDevice)).toBe(3n);
  },
);

describe('a claim is permitted', () => {
  test('from the own user, and from those who share a conversation', async () => {
    const device = await newDevice();
    const own = await service.asRegistered({ userId: device.userId, deviceId: 'laptop' });
    expect((await claim(own, device)).results[0]?.bundle).toBeDefined();
    const friend = newUser();
    service.peers.share(friend, device.userId);
    const client = await service.asRegistered({ userId: friend, deviceId: 'phone' });
    expect((await claim(client, device)).results[0]?.bundle).toBeDefined();
  });

  test('by the application, in one direction, until a time or until it is withdrawn', async () => {
    const device = await newDevice();
    const caller = newUser();
    const client = await service.asRegistered({ userId: caller, deviceId: 'phone' });
    const permitted = async () => (await claim(client, device)).results[0]?.bundle !== undefined;
    await permit(device.userId, caller, inAnHour());
    expect(await permitted()).toBe(false);
    await permit(caller, device.userId, inAnHour());
    expect(await permitted()).toBe(true);
    const byUser = await client.claimPrekeyBundles({ claimId: randomUUID(), userIds: [device.userId] });
    expect(byUser.results[0]?.bundle).toBeDefined();
    await permit(caller, device.userId);
    expect(await permitted()).toBe(false);
    await permit(caller, device.userId, timestampFromDate(new Date(Date.now() - 1_000)));
    expect(await permitted()).toBe(false);
  });

  test('to services', async () => {
    const device = await newDevice();
    expect((await claim(service.asService('session'), device)).results[0]?.bundle).toBeDefined();
  });

  test('to a holder, for the device whose key request was offered to it', async () => {
    const device = await newDevice();
    const holder = { userId: newUser(), deviceId: 'holder' };
    const client = await service.asRegistered(holder);
    const keyRequestId = randomUUID();
    const uniform = NoBundleReason.NOT_FOUND_OR_NOT_PERMITTED;
    expect((await claim(client, device, { keyRequestId })).results[0]?.noBundleBecause).toBe(uniform);
    service.peers.keyRequests.set(keyRequestId, {
      requester: { userId: device.userId, deviceId: device.deviceId },
      offeredTo: `${holder.userId}/${holder.deviceId}`,
    });
    for (let i = 0; i < 3; i++)
      expect((await claim(client, device, { keyRequestId })).results[0]?.bundle).toBeDefined();
    expect((await claim(client, device, { keyRequestId })).results[0]?.noBundleBecause).toBe(uniform);
  });
});

test('of devices of which some are permitted, those have bundles', async () => {
  const [a, b] = [await newDevice(), await newDevice()];
  const caller = newUser();
  service.peers.share(caller, b.userId);
  const client = await service.asRegistered({ userId: caller, deviceId: 'phone' });
  const devices = [a, b].map(({ userId, deviceId }) => ({ userId, deviceId }));
  const { results } = await client.claimPrekeyBundles({ claimId: randomUUID(), devices });
  expect(results.map(({ bundle }) => bundle?.userId)).toEqual([undefined, b.userId]);
});

test('a claim tried again gets what it got, whatever is permitted by now and although nobody can be asked', async () => {
  const device = await newDevice();
  const caller = newUser();
  const client = await service.asRegistered({ userId: caller, deviceId: 'phone' });
  const [refused, taken] = [randomUUID(), randomUUID()];
  const without = await claim(client, device, { claimId: refused });
  service.peers.share(caller, device.userId);
  const first = await claim(client, device, { claimId: taken });
  // The claim that was not permitted says so, also to one who may know the device now.
  expect(await claim(client, device, { claimId: refused })).toEqual(without);
  service.peers.part(caller);
  expect(await claim(client, device, { claimId: taken })).toEqual(first);
  service.peers.conversationAway = true;
  try {
    expect(await claim(client, device, { claimId: taken })).toEqual(first);
    expect(await refusalOf(claim(client, device))).toMatchObject({
      code: Code.Unavailable,
      reason: 'PEER_UNAVAILABLE',
    });
  } finally {
    service.peers.conversationAway = false;
  }
});

describe('SetClaimPermission', () => {
  test('is for operators, and idempotent by request id', async () => {
    const request = { requestId: randomUUID(), userId: newUser(), targetUserId: newUser(), expiresAt: inAnHour() };
    const device = await service.asRegistered({ userId: newUser(), deviceId: 'phone' });
    expect(await refusalOf(device.setClaimPermission(request))).toMatchObject({ reason: 'CALLER_NOT_ALLOWED' });
    const operator = await service.asOperator();
    await operator.setClaimPermission(request);
    await operator.setClaimPermission(request);
    expect(await refusalOf(operator.setClaimPermission({ ...request, userId: newUser() }))).toMatchObject({
      reason: 'REQUEST_ID_REUSED',
    });
  });

  test('leaves nothing behind when a permission is over', async () => {
    const userId = newUser();
    await permit(userId, newUser(), inAnHour());
    const [over, there] = [
      statement(
        'test_permission_over',
        "UPDATE claim_permissions SET expires_at = now() - interval '1 second' WHERE user_id = $1",
      ),
      statement('test_permission_there', 'SELECT count(*) AS there FROM claim_permissions WHERE user_id = $1'),
    ];
    await purgeClaimPermissions(service.db, 10);
    expect(await service.db.query(there, [userId])).toEqual([{ there: 1n }]);
    await service.db.query(over, [userId]);
    await purgeClaimPermissions(service.db, 10);
    expect(await service.db.query(there, [userId])).toEqual([{ there: 0n }]);
  });
});
