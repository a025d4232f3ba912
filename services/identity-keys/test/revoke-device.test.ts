import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import { DeviceRefSchema, NoBundleReason, RevokeDeviceRequestSchema, RevokedBy } from '@keytrail/contracts';
import { compareDeviceList, createRootKey, emptyDeviceLog, verifyDeviceLog } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeDevice, makeOneTimePrekeys } from './device-keys.ts';
import { eventsAbout } from './device-list-events.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';
import { revocationOf } from './revoking.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ replicas: 2 });
});
afterAll(() => service?.stop());

/** A user with two devices. */
async function twoDevices() {
  const userId = newUser();
  const { device: phone } = await service.register({ userId, deviceId: 'phone' });
  const { device: laptop } = await service.register({
    userId,
    deviceId: 'laptop',
    rootKey: phone.rootKey,
    oneTime: 4,
    kem: 2,
  });
  return { userId, phone, laptop, client: await service.asDevice(phone) };
}

async function rows(sql: string, values: unknown[]) {
  return (await service.db.pool.query<Record<string, unknown>>(sql, values)).rows;
}

async function verifiedLog(userId: string) {
  const client = service.asService('session');
  const [log] = (await client.listDeviceLog({ users: [{ userId }] })).deviceLogs;
  const [list] = (await client.getDevices({ userIds: [userId], includeRevoked: true })).deviceLists;
  if (!log || !list) throw new Error('no log');
  compareDeviceList(verifyDeviceLog(nodePrimitives, emptyDeviceLog(userId), log.entries), list);
  return log;
}

const operatorsRequest = (userId: string, deviceId: string) =>
  create(RevokeDeviceRequestSchema, {
    requestId: randomUUID(),
    device: { userId, deviceId },
    auditNote: 'reported stolen',
  });

describe('a device revoked by another one of its user', () => {
  test('has no prekeys left, stands in the log with the root key’s signature, and stays readable', async () => {
    const { userId, laptop, client } = await twoDevices();
    const request = revocationOf(laptop);
    const response = await client.revokeDevice(request);
    expect(response).toMatchObject({ deviceListVersion: 3n, removed: { oneTime: 4, kem: 2 } });
    const log = await verifiedLog(userId);
    expect(log.entries[2]).toMatchObject({
      deviceId: 'laptop',
      hash: response.logHead,
      recordedAt: response.revokedAt,
      revocation: {
        by: RevokedBy.USER_DEVICE,
        revokingDeviceId: 'phone',
        signedAt: request.revokedAt,
        signature: request.signature,
      },
    });
    const left = `SELECT (SELECT count(*) FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number) AS one_time,
                         (SELECT count(*) FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number) AS kem
                    FROM devices d WHERE user_id = $1 ORDER BY added_in_version`;
    expect(await rows(left, [userId])).toEqual([
      { one_time: 3n, kem: 3n },
      { one_time: 0n, kem: 0n },
    ]);
    const { results } = await service
      .asService('session')
      .claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId: 'laptop' }] });
    expect(results[0]?.noBundleBecause).toBe(NoBundleReason.DEVICE_REVOKED);
    const [list] = (await client.getDevices({ userIds: [userId], includeRevoked: true })).deviceLists;
    expect(list?.devices.map(({ deviceId, revokedAt }) => [deviceId, revokedAt])).toEqual([
      ['phone', undefined],
      ['laptop', response.revokedAt],
    ]);
    expect(list?.devices[1]?.identityKey).toEqual(laptop.identityKey.publicKey);
  });

  test('is one event, in its place among those of the user', async () => {
    const { userId, phone, laptop, client } = await twoDevices();
    const events = await eventsAbout(userId, service.natsUrl, 2n);
    const response = await client.revokeDevice(revocationOf(laptop));
    await client.revokeDevice(revocationOf(laptop));
    await service.register({ userId, deviceId: 'tablet', rootKey: phone.rootKey });
    const [revoked, added] = await events.next(2);
    await events.close();
    const { revokedAt } = response;
    expect(revoked).toMatchObject({ userId, deviceId: 'laptop', revoked: true, version: 3n, changedAt: revokedAt });
    expect(added).toMatchObject({ deviceId: 'tablet', revoked: false, version: 4n });
  });

  test('again gets the same answer and leaves one entry, also when ten ask at once', async () => {
    const { userId, laptop, client } = await twoDevices();
    const request = revocationOf(laptop);
    const first = await client.revokeDevice(request);
    expect(await client.revokeDevice(request)).toEqual(first);
    const others = Array.from({ length: 10 }, (_, i) =>
      service
        .asDevice({ userId, deviceId: 'phone' }, { replica: i % 2 })
        .then((other) => other.revokeDevice({ ...revocationOf(laptop), requestId: randomUUID() })),
    );
    for (const other of await Promise.all(others)) expect(other).toEqual(first);
    expect((await verifiedLog(userId)).version).toBe(3n);
  });

  test('may be the calling device itself; the repetition of its request still gets the answer', async () => {
    const { userId, laptop } = await twoDevices();
    const own = await service.asDevice(laptop);
    const request = revocationOf(laptop);
    const response = await own.revokeDevice(request);
    expect(await own.revokeDevice(request)).toEqual(response);
    expect(await refusalOf(own.revokeDevice(revocationOf(laptop)))).toMatchObject({ reason: 'DEVICE_REVOKED' });
    expect((await verifiedLog(userId)).version).toBe(3n);
  });

  test('is refused everything that changes something', async () => {
    const { userId, phone, laptop, client } = await twoDevices();
    await client.revokeDevice(revocationOf(laptop));
    const gone = await service.asDevice(laptop);
    const { registration } = makeDevice({ userId, deviceId: 'laptop', rootKey: phone.rootKey });
    const calls = [
      () => gone.replenishPrekeys({ requestId: randomUUID(), oneTimePrekeys: makeOneTimePrekeys(50, 1) }),
      () => gone.registerDevice(registration),
      () => gone.revokeDevice(revocationOf(phone)),
    ];
    for (const call of calls)
      expect(await refusalOf(call())).toMatchObject({
        code: Code.FailedPrecondition,
        reason: 'DEVICE_REVOKED',
        metadata: { device_id: 'laptop' },
      });
    expect((await verifiedLog(userId)).version).toBe(3n);
  });

  test('makes room for another one, under another id', async () => {
    const { userId, phone, laptop, client } = await twoDevices();
    await client.revokeDevice(revocationOf(laptop));
    const { response } = await service.register({ userId, deviceId: 'tablet', rootKey: phone.rootKey });
    expect(response.deviceListVersion).toBe(4n);
    await verifiedLog(userId);
  });
});

describe('a revocation is refused', () => {
  test.for(wires)('with a signature by another root key, or of another device (%s)', async (wire) => {
    const { userId, phone, laptop } = await twoDevices();
    const client = await service.asDevice(phone, { wire });
    const spoilt = [
      revocationOf(laptop, { rootKey: createRootKey(nodePrimitives) }),
      { ...revocationOf(phone), device: create(DeviceRefSchema, { userId, deviceId: 'laptop' }) },
      { ...revocationOf(laptop), revokedAt: timestampFromMs(Date.now() - 1_000) },
    ];
    for (const request of spoilt)
      expect(await refusalOf(client.revokeDevice(request))).toMatchObject({
        code: Code.InvalidArgument,
        reason: 'SIGNATURE_INVALID',
        metadata: { field: 'signature' },
      });
    expect((await verifiedLog(userId)).version).toBe(2n);
  });

  test('when it was signed more than a day ago, or is signed for a day that is to come', async () => {
    const { laptop, client } = await twoDevices();
    const day = 24 * 60 * 60 * 1000;
    for (const signedAt of [Date.now() - day - 60_000, Date.now() + day + 60_000, 0])
      expect(await refusalOf(client.revokeDevice(revocationOf(laptop, { signedAt })))).toMatchObject({
        reason: 'INVALID_FIELD',
        metadata: { field: 'revoked_at' },
      });
  });

  test('by a device of another user, and for a device that is not there, in the same words', async () => {
    const { userId, laptop, client } = await twoDevices();
    const { device: stranger } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const byStranger = await refusalOf((await service.asDevice(stranger)).revokeDevice(revocationOf(laptop)));
    const unknown = revocationOf({ ...laptop, deviceId: 'tablet' });
    const ofNobody = await refusalOf(client.revokeDevice(unknown));
    const ofUnknownUser = await refusalOf(
      (await service.asOperator()).revokeDevice(operatorsRequest(newUser(), 'phone')),
    );
    for (const refusal of [byStranger, ofNobody, ofUnknownUser])
      expect(refusal).toMatchObject({ code: Code.NotFound, reason: 'NOT_FOUND_OR_NOT_PERMITTED', metadata: {} });
    expect(byStranger.message).toBe(ofNobody.message);
    expect((await verifiedLog(userId)).version).toBe(2n);
  });

  test('to a device that has not been registered', async () => {
    const { userId, laptop } = await twoDevices();
    const stray = await service.asDevice({ userId, deviceId: 'stray' });
    expect(await refusalOf(stray.revokeDevice(revocationOf(laptop)))).toMatchObject({
      reason: 'DEVICE_NOT_REGISTERED',
      metadata: { device_id: 'stray' },
    });
  });
});

describe('an operator', () => {
  test.for(wires)('revokes with a reason, which is audited with the trace (%s)', async (wire) => {
    const { userId } = await twoDevices();
    const operator = await service.asOperator({ wire });
    const response = await operator.revokeDevice(operatorsRequest(userId, 'laptop'));
    expect(response).toMatchObject({ deviceListVersion: 3n, removed: { oneTime: 4, kem: 2 } });
    const log = await verifiedLog(userId);
    expect(log.entries[2]?.revocation).toMatchObject({ by: RevokedBy.OPERATOR, revokingDeviceId: '' });
    expect(await operator.revokeDevice(operatorsRequest(userId, 'laptop'))).toEqual(response);
    const audited = await rows('SELECT * FROM audit_log WHERE user_id = $1', [userId]);
    expect(audited).toMatchObject([
      { operator: 'operator', action: 'revoke_device', device_id: 'laptop', note: 'reported stolen' },
    ]);
    expect(audited[0]?.trace_id).toMatch(/^[0-9a-f]{32}$/);
  });
});

describe('the list of revocations', () => {
  test('is for services that follow it, in the order of the numbers, page by page', async () => {
    const before = await newest();
    const users = [];
    for (let i = 0; i < 3; i++) {
      const { userId } = await twoDevices();
      await service.revoke(userId);
      users.push(userId);
    }
    const session = service.asService('session');
    const seen: [string | undefined, string | undefined][] = [];
    let after = before;
    for (let more = true; more; ) {
      const page = await session.listRevokedDevices({ after, pageSize: 4 });
      expect(page.revocations.length).toBeLessThanOrEqual(4);
      for (const { number, device } of page.revocations) {
        expect(number).toBeGreaterThan(after);
        after = number;
        seen.push([device?.userId, device?.deviceId]);
      }
      more = page.more;
    }
    expect(seen).toEqual(
      users.flatMap((userId) => [
        [userId, 'phone'],
        [userId, 'laptop'],
      ]),
    );
    expect(await session.listRevokedDevices({ after: 2n ** 63n - 1n })).toMatchObject({ revocations: [], more: false });
    await service.asService('conversation').listRevokedDevices({ after, pageSize: 1 });
    const someone = await service.asDevice({ userId: 'someone', deviceId: 'phone' });
    expect(await refusalOf(someone.listRevokedDevices({}))).toMatchObject({ reason: 'CALLER_NOT_ALLOWED' });
  });

  test('shows no number before all lower ones: a later revocation waits for the commit of an earlier one', async () => {
    const [first, second] = [await twoDevices(), await twoDevices()];
    const before = await newest();
    const connection = await service.db.pool.connect();
    try {
      await connection.query('BEGIN');
      await connection.query(
        `INSERT INTO revocations (user_id, device_id, version, revoked_at, removed_one_time, removed_kem) VALUES ($1, 'held', 99, now(), 0, 0)`,
        [first.userId],
      );
      let revoked = false;
      const revoking = service.revoke(second.userId, 'laptop').then(() => {
        revoked = true;
      });
      const waiting = `SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND NOT granted
                          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`;
      await expect.poll(async () => revoked || (await rows(waiting, [])).length === 1).toBe(true);
      expect(await service.asService('session').listRevokedDevices({ after: before })).toMatchObject({
        revocations: [],
      });
      await connection.query('COMMIT');
      await revoking;
    } finally {
      connection.release();
    }
    const { revocations } = await service.asService('session').listRevokedDevices({ after: before });
    expect(revocations.map(({ device }) => [device?.userId, device?.deviceId])).toEqual([
      [first.userId, 'held'],
      [second.userId, 'laptop'],
    ]);
  });
});

async function newest(): Promise<bigint> {
  const [row] = await rows('SELECT coalesce(max(number), 0)::bigint AS newest FROM revocations', []);
  return row?.newest as bigint;
}
