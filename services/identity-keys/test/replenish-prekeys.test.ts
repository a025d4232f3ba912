import { randomUUID } from 'node:crypto';
import { Code } from '@connectrpc/connect';
import { type KemPrekey, type OneTimePrekey, PrekeyKind } from '@keytrail/contracts';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ settings: { KEYTRAIL_MAX_PREKEYS_PER_POOL: '10' } });
});
afterAll(() => service?.stop());

interface Upload {
  readonly requestId?: string;
  readonly oneTimePrekeys?: OneTimePrekey[];
  readonly oneTimeKemPrekeys?: KemPrekey[];
}

async function newDevice(oneTime: number): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone', oneTime, kem: oneTime })).device;
}

async function replenish(device: TestDevice, upload: Upload) {
  const { counts } = await (await service.asDevice(device)).replenishPrekeys({ requestId: randomUUID(), ...upload });
  return [counts?.oneTime, counts?.kem];
}

/** Ids of the one-time and the KEM prekey, and the kind of the latter. */
async function claim({ userId, deviceId }: TestDevice) {
  const claimed = { claimId: randomUUID(), devices: [{ userId, deviceId }] };
  const bundle = (await service.asService('session').claimPrekeyBundles(claimed)).results[0]?.bundle;
  return [bundle?.oneTimePrekey?.keyId, bundle?.kemPrekey?.keyId, bundle?.kemPrekeyKind];
}

describe('new prekeys', () => {
  test('are added to the end of the pools and issued in the order of upload, whatever their ids', async () => {
    const device = await newDevice(1);
    const oneTimePrekeys = [...makeOneTimePrekeys(40, 1), ...makeOneTimePrekeys(30, 1)];
    const oneTimeKemPrekeys = [...makeKemPrekeys(device, 4294967295, 1), ...makeKemPrekeys(device, 7, 1)];
    expect(await replenish(device, { oneTimePrekeys, oneTimeKemPrekeys })).toEqual([3, 3]);
    expect([await claim(device), await claim(device), await claim(device), await claim(device)]).toEqual([
      [1, 2, PrekeyKind.ONE_TIME],
      [40, 4294967295, PrekeyKind.ONE_TIME],
      [30, 7, PrekeyKind.ONE_TIME],
      [undefined, 1, PrekeyKind.LAST_RESORT],
    ]);
    expect(await replenish(device, { oneTimePrekeys: makeOneTimePrekeys(50, 1) })).toEqual([1, 0]);
    expect(await claim(device)).toEqual([50, 1, PrekeyKind.LAST_RESORT]);
  });

  test('are bounded by the pool, all or nothing', async () => {
    const device = await newDevice(8);
    const upload = { oneTimePrekeys: makeOneTimePrekeys(100, 2), oneTimeKemPrekeys: makeKemPrekeys(device, 100, 3) };
    expect(await refusalOf(replenish(device, upload))).toMatchObject({
      code: Code.ResourceExhausted,
      reason: 'PREKEY_POOL_FULL',
      metadata: { limit: '10', unclaimed: '8' },
    });
    expect(await replenish(device, {})).toEqual([8, 8]);
    await claim(device);
    expect(await replenish(device, upload)).toEqual([9, 10]);
  });

  test('of a device that is not registered, or was revoked, are refused', async () => {
    const device = await newDevice(1);
    const upload = { oneTimePrekeys: makeOneTimePrekeys(100, 1) };
    expect(await refusalOf(replenish({ ...device, deviceId: 'tablet' }, upload))).toMatchObject({
      code: Code.FailedPrecondition,
      reason: 'DEVICE_NOT_REGISTERED',
      metadata: { device_id: 'tablet' },
    });
    await service.revoke(device.userId);
    expect(await refusalOf(replenish(device, upload))).toMatchObject({
      code: Code.FailedPrecondition,
      reason: 'DEVICE_REVOKED',
      metadata: { device_id: 'phone', revoked_at: expect.stringMatching(/Z$/) },
    });
  });

  test('that are hostile are refused with their field, id and rule', async () => {
    const device = await newDevice(1);
    const stranger = await newDevice(1);
    const zero = makeOneTimePrekeys(100, 2);
    if (zero[1]) zero[1].publicKey = new Uint8Array(32);
    expect(await refusalOf(replenish(device, { oneTimePrekeys: zero }))).toMatchObject({
      code: Code.InvalidArgument,
      reason: 'KEY_INVALID',
      metadata: { field: 'one_time_prekeys[1].public_key', key_id: '101', rule: 'low-order' },
    });
    const oneTimeKemPrekeys = [...makeKemPrekeys(device, 100, 3), ...makeKemPrekeys(stranger, 103, 1)];
    expect(await refusalOf(replenish(device, { oneTimeKemPrekeys }))).toMatchObject({
      code: Code.InvalidArgument,
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'one_time_kem_prekeys[3].signature', key_id: '103' },
    });
    const twice = [...makeOneTimePrekeys(100, 2), ...makeOneTimePrekeys(101, 1)];
    expect(await refusalOf(replenish(device, { oneTimePrekeys: twice }))).toMatchObject({
      code: Code.InvalidArgument,
      metadata: { field: 'one_time_prekeys[2].key_id' },
    });
    expect(await replenish(device, {})).toEqual([1, 1]);
  });
});

describe('prekeys that were uploaded before', () => {
  test('change nothing, claimed or not: a claimed prekey never comes back', async () => {
    const device = await newDevice(0);
    const upload = { oneTimePrekeys: makeOneTimePrekeys(1, 2), oneTimeKemPrekeys: makeKemPrekeys(device, 2, 2) };
    expect(await replenish(device, upload)).toEqual([2, 2]);
    expect(await replenish(device, upload)).toEqual([2, 2]);
    expect(await claim(device)).toEqual([1, 2, PrekeyKind.ONE_TIME]);
    expect(await replenish(device, upload)).toEqual([1, 1]);
    expect(await claim(device)).toEqual([2, 3, PrekeyKind.ONE_TIME]);
    expect(await replenish(device, upload)).toEqual([0, 0]);
    expect(await claim(device)).toEqual([undefined, 1, PrekeyKind.LAST_RESORT]);
  });

  test('with another key under the same id are refused, claimed or not', async () => {
    const device = await newDevice(2);
    await claim(device);
    for (const keyId of [1, 2])
      expect(
        await refusalOf(
          replenish(device, { oneTimePrekeys: [...makeOneTimePrekeys(60, 1), ...makeOneTimePrekeys(keyId, 1)] }),
        ),
      ).toMatchObject({
        code: Code.AlreadyExists,
        reason: 'PREKEY_ID_CONFLICT',
        metadata: { field: 'one_time_prekeys[1].key_id', key_id: String(keyId) },
      });
    for (const keyId of [1, 2, 3])
      expect(await refusalOf(replenish(device, { oneTimeKemPrekeys: makeKemPrekeys(device, keyId, 1) }))).toMatchObject(
        {
          reason: 'PREKEY_ID_CONFLICT',
          metadata: { field: 'one_time_kem_prekeys[0].key_id', key_id: String(keyId) },
        },
      );
    expect(await replenish(device, {})).toEqual([1, 1]);
  });

  test('under the same request id give the first answer, other content a refusal', async () => {
    const device = await newDevice(1);
    const upload = { requestId: randomUUID(), oneTimePrekeys: makeOneTimePrekeys(60, 1) };
    expect(await replenish(device, upload)).toEqual([2, 1]);
    await claim(device);
    expect(await replenish(device, upload)).toEqual([2, 1]);
    expect(await refusalOf(replenish(device, { ...upload, oneTimePrekeys: makeOneTimePrekeys(61, 1) }))).toMatchObject({
      code: Code.AlreadyExists,
      reason: 'REQUEST_ID_REUSED',
    });
  });

  test('at the same time by two uploads are added once', async () => {
    const device = await newDevice(0);
    const upload = { oneTimePrekeys: makeOneTimePrekeys(1, 5), oneTimeKemPrekeys: makeKemPrekeys(device, 2, 5) };
    await Promise.all(Array.from({ length: 6 }, () => replenish(device, upload)));
    expect(await replenish(device, {})).toEqual([5, 5]);
  });
});
