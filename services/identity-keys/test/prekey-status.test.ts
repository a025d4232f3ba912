import { randomUUID } from 'node:crypto';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({
    settings: { KEYTRAIL_LOW_PREKEYS_BELOW: '3', KEYTRAIL_REFILL_PREKEYS_TO: '8' },
  });
});
afterAll(() => service?.stop());

async function newDevice(oneTime = 3, kem = oneTime): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone', oneTime, kem })).device;
}

async function statusOf(device: TestDevice) {
  const { status } = await (await service.asDevice(device)).getPrekeyStatus({});
  if (!status) throw new Error('no status');
  return status;
}

const ref = ({ userId, deviceId }: TestDevice) => ({ userId, deviceId });

async function claim(device: TestDevice) {
  await service.asService('session').claimPrekeyBundles({ claimId: randomUUID(), devices: [ref(device)] });
}

/** Makes the rows of a table, of one device, older. */
async function age(table: string, { userId }: TestDevice, by: string) {
  await service.db.pool.query(
    `UPDATE ${table} SET added_at = added_at - interval '${by}'
      WHERE device_number = (SELECT device_number FROM devices WHERE user_id = $1)`,
    [userId],
  );
}

describe('the status of a device’s prekeys', () => {
  test('has its levels, what they should be, and which prekeys are current since when', async () => {
    const device = await newDevice(4, 3);
    const status = await statusOf(device);
    expect(status).toMatchObject({
      counts: { oneTime: 4, kem: 3 },
      lowBelow: 3,
      refillTo: 8,
      refillDue: false,
      signedPrekeyId: 1,
      signedPrekeyDue: false,
      lastResortPrekeyId: 1,
      lastResortPrekeyDue: false,
      retired: { oneTime: 0, kem: 0 },
      overAged: { oneTime: 0, kem: 0 },
    });
    const { rows } = await service.db.pool.query(
      'SELECT p.added_at FROM signed_prekeys p JOIN devices d USING (device_number) WHERE user_id = $1',
      [device.userId],
    );
    for (const at of [status.signedPrekeyAddedAt, status.lastResortPrekeyAddedAt])
      expect(at && timestampDate(at)).toEqual(rows[0]?.added_at);
  });

  test('says that a refill is due when either pool is low, and no longer when both are filled', async () => {
    const device = await newDevice(3, 10);
    expect(await statusOf(device)).toMatchObject({ refillDue: false });
    await claim(device);
    expect(await statusOf(device)).toMatchObject({ counts: { oneTime: 2, kem: 9 }, refillDue: true });
    const client = await service.asDevice(device);
    await client.replenishPrekeys({ requestId: randomUUID(), oneTimePrekeys: makeOneTimePrekeys(50, 6) });
    expect(await statusOf(device)).toMatchObject({ counts: { oneTime: 8, kem: 9 }, refillDue: false });
  });

  test('says that a signed prekey is due after seven days, and not before', async () => {
    const device = await newDevice();
    await age('signed_prekeys', device, '6 days 23 hours');
    expect(await statusOf(device)).toMatchObject({ signedPrekeyDue: false, lastResortPrekeyDue: false });
    await age('signed_prekeys', device, '2 hours');
    expect(await statusOf(device)).toMatchObject({ signedPrekeyDue: true, lastResortPrekeyDue: false });
  });

  test('says that a last-resort prekey is due after thirty days, and not before', async () => {
    const device = await newDevice();
    await age('last_resort_prekeys', device, '29 days 23 hours');
    expect(await statusOf(device)).toMatchObject({ signedPrekeyDue: false, lastResortPrekeyDue: false });
    await age('last_resort_prekeys', device, '2 hours');
    expect(await statusOf(device)).toMatchObject({ signedPrekeyDue: false, lastResortPrekeyDue: true });
  });

  test('counts one-time prekeys that have waited for more than ninety days as over-aged', async () => {
    const device = await newDevice(2, 3);
    await age('unclaimed_one_time_prekeys', device, '89 days');
    await age('unclaimed_one_time_kem_prekeys', device, '91 days');
    expect(await statusOf(device)).toMatchObject({ counts: { oneTime: 2, kem: 3 }, overAged: { oneTime: 0, kem: 3 } });
  });
});

describe.for(wires)('asked for over %s', (wire) => {
  test('a device may only ask for itself', async () => {
    const [device, other] = [await newDevice(), await newDevice()];
    const client = await service.asDevice(device, { wire });
    expect((await client.getPrekeyStatus({ device: ref(device) })).status?.counts?.oneTime).toBe(3);
    expect(await refusalOf(client.getPrekeyStatus({ device: ref(other) }))).toMatchObject({
      code: Code.InvalidArgument,
      reason: 'INVALID_FIELD',
      metadata: { field: 'device' },
    });
  });

  test('a device that is not registered, or was revoked, has no status', async () => {
    const device = await newDevice();
    const stranger = await service.asDevice({ ...device, deviceId: 'tablet' }, { wire });
    expect(await refusalOf(stranger.getPrekeyStatus({}))).toMatchObject({
      code: Code.FailedPrecondition,
      reason: 'DEVICE_NOT_REGISTERED',
      metadata: { device_id: 'tablet' },
    });
    await service.revoke(device.userId);
    expect(await refusalOf((await service.asDevice(device, { wire })).getPrekeyStatus({}))).toMatchObject({
      reason: 'DEVICE_REVOKED',
    });
  });
});

test('services ask for any device, and have to name it', async () => {
  const device = await newDevice(3, 1);
  const client = service.asService('session');
  expect((await client.getPrekeyStatus({ device: ref(device) })).status).toMatchObject({
    counts: { oneTime: 3, kem: 1 },
  });
  expect(await refusalOf(client.getPrekeyStatus({}))).toMatchObject({
    reason: 'INVALID_FIELD',
    metadata: { field: 'device' },
  });
  expect(await refusalOf(client.getPrekeyStatus({ device: { userId: 'a/b', deviceId: 'phone' } }))).toMatchObject({
    reason: 'INVALID_FIELD',
    metadata: { field: 'device.user_id' },
  });
});

describe('the last-resort prekey, once handed out,', () => {
  test('is due as soon as one-time prekeys are there again, and not while it is all there is', async () => {
    const device = await newDevice(1, 1);
    const client = await service.asDevice(device);
    const refill = async (keyId: number) => {
      await client.replenishPrekeys({ requestId: randomUUID(), oneTimeKemPrekeys: makeKemPrekeys(device, keyId, 1) });
    };
    await claim(device);
    await refill(10);
    expect(await statusOf(device)).toMatchObject({ lastResortPrekeyDue: false });
    await claim(device);
    await claim(device);
    expect(await statusOf(device)).toMatchObject({ counts: { kem: 0 }, lastResortPrekeyDue: false });
    await refill(11);
    expect(await statusOf(device)).toMatchObject({ counts: { kem: 1 }, lastResortPrekeyDue: true });
  });

  test('is marked by one of many claims at the same time, and by none that rolls back', async () => {
    const device = await newDevice(0, 0);
    await Promise.all(Array.from({ length: 20 }, () => claim(device)));
    const { rows } = await service.db.pool.query(
      `SELECT l.handed_out_at = (SELECT min(claimed_at) FROM claims WHERE d.device_number = ANY (device_numbers)) IS NOT NULL AS marked
         FROM devices d JOIN last_resort_prekeys l USING (device_number) WHERE user_id = $1`,
      [device.userId],
    );
    expect(rows).toEqual([{ marked: true }]);
  });
});
