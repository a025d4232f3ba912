import { randomUUID } from 'node:crypto';
import { fromBinary } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import {
  type ClaimResult,
  NoBundleReason,
  NotificationKind,
  NotificationRequestedSchema,
  PrekeyKind,
  PrekeysLowSchema,
} from '@keytrail/contracts';
import { verifyBundle } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { statement } from '@keytrail/storage';
import { connect } from '@nats-io/transport-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
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
  service = await startIdentityKeys({ replicas: 2, settings: { KEYTRAIL_LOW_PREKEYS_BELOW: '5' } });
});
afterAll(() => service?.stop());
const unclaimed = statement(
  'test_unclaimed',
  `SELECT (SELECT count(*) FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number) AS one_time,
          (SELECT count(*) FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number) AS kem
     FROM devices d WHERE user_id = $1`,
);

async function newDevice(options: { oneTime?: number; kem?: number } = {}): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone', ...options })).device;
}

async function claimOne(client: IdentityKeysClient, { userId, deviceId }: TestDevice, claimId: string = randomUUID()) {
  const { results } = await client.claimPrekeyBundles({ claimId, devices: [{ userId, deviceId }] });
  return results[0] as ClaimResult;
}

/** One-time prekey id, KEM prekey id and kind. */
function keysOf({ bundle }: ClaimResult) {
  return [bundle?.oneTimePrekey?.keyId, bundle?.kemPrekey?.keyId, bundle?.kemPrekeyKind];
}

describe('a claim', () => {
  test.for(wires)('brings bundles that verify, in the order of upload, then says last resort (%s)', async (wire) => {
    const device = await newDevice({ oneTime: 3, kem: 2 });
    const client = await service.asRegistered({ userId: newUser(), deviceId: 'asking' }, { wire });
    const results = [];
    for (let i = 0; i < 5; i++) results.push(await claimOne(client, device));
    expect(results.map(keysOf)).toEqual([
      [1, 2, PrekeyKind.ONE_TIME],
      [2, 3, PrekeyKind.ONE_TIME],
      [3, 1, PrekeyKind.LAST_RESORT],
      [undefined, 1, PrekeyKind.LAST_RESORT],
      [undefined, 1, PrekeyKind.LAST_RESORT],
    ]);
    for (const { bundle, device: claimed } of results) {
      expect(claimed).toMatchObject({ userId: device.userId, deviceId: 'phone' });
      if (!bundle) throw new Error('no bundle');
      expect(verifyBundle(nodePrimitives, bundle, device.rootKey.publicKey).userId).toBe(device.userId);
    }
  });

  test('of many devices answers in the order asked, with the reason where there is no bundle', async () => {
    const devices = await Promise.all([newDevice(), newDevice(), newDevice()]);
    const [a, b, revoked] = devices as [TestDevice, TestDevice, TestDevice];
    await service.revoke(revoked.userId);
    const asked = [
      { userId: b.userId, deviceId: 'phone' },
      { userId: a.userId, deviceId: 'no-such-device' },
      { userId: revoked.userId, deviceId: 'phone' },
      { userId: a.userId, deviceId: 'phone' },
      { userId: newUser(), deviceId: 'phone' },
    ];
    const { results } = await service
      .asService('session')
      .claimPrekeyBundles({ claimId: randomUUID(), devices: asked });
    expect(results.map(({ device }) => ({ userId: device?.userId, deviceId: device?.deviceId }))).toEqual(asked);
    expect(results.map(({ bundle }) => bundle?.userId)).toEqual([b.userId, undefined, undefined, a.userId, undefined]);
    expect(results.map((result) => result.noBundleBecause)).toEqual([
      NoBundleReason.UNSPECIFIED,
      NoBundleReason.DEVICE_UNKNOWN,
      NoBundleReason.DEVICE_REVOKED,
      NoBundleReason.UNSPECIFIED,
      NoBundleReason.DEVICE_UNKNOWN,
    ]);
    expect(await service.db.query(unclaimed, [revoked.userId])).toEqual([{ one_time: 0n, kem: 0n }]);
  });

  test.for(wires)('that names a device twice is refused (%s)', async (wire) => {
    const client = await service.asRegistered({ userId: newUser(), deviceId: 'asking' }, { wire });
    const device = { userId: newUser(), deviceId: 'phone' };
    const devices = [device, { ...device, deviceId: 'tablet' }, device];
    const refusal = await refusalOf(client.claimPrekeyBundles({ claimId: randomUUID(), devices }));
    expect(refusal).toMatchObject({
      code: Code.InvalidArgument,
      reason: 'INVALID_FIELD',
      metadata: { field: 'devices[2]' },
    });
  });

  test('takes 321 devices at once, each its own key', async () => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'd0', oneTime: 1, kem: 1 });
    const names = ['d0'];
    for (let i = 1; i < 50; i++) {
      names.push(`d${i}`);
      await service.register({ userId: device.userId, deviceId: `d${i}`, rootKey: device.rootKey, oneTime: 1, kem: 1 });
    }
    const unknown = Array.from({ length: 271 }, (_, i) => `unknown-${i}`);
    const devices = [...names, ...unknown].map((deviceId) => ({ userId: device.userId, deviceId }));
    const { results } = await service.asService('session').claimPrekeyBundles({ claimId: randomUUID(), devices });
    expect(results.map((result) => result.device?.deviceId)).toEqual(devices.map(({ deviceId }) => deviceId));
    expect(results.slice(0, 50).map(keysOf)).toEqual(names.map(() => [1, 2, PrekeyKind.ONE_TIME]));
    expect(results.slice(50).every(({ bundle }) => bundle === undefined)).toBe(true);
  });
});

describe('a claim tried again', () => {
  test('gets the same bundles, also after prekeys were rotated, used up, and the device revoked', async () => {
    const device = await newDevice({ oneTime: 2, kem: 2 });
    const client = service.asService('session');
    const claimId = randomUUID();
    const first = await claimOne(client, device, claimId);
    await claimOne(client, device);
    await claimOne(client, device);
    await service.revoke(device.userId);
    expect(await claimOne(client, device, claimId)).toEqual(first);
    expect(await claimOne(service.asService('session', { replica: 1 }), device, claimId)).toEqual(first);
  });

  test('gets the same reasons', async () => {
    const device = { ...(await newDevice()), deviceId: 'tablet' };
    const client = service.asService('session');
    const claimId = randomUUID();
    const first = await claimOne(client, device, claimId);
    expect(first.noBundleBecause).toBe(NoBundleReason.DEVICE_UNKNOWN);
    await service.register({ userId: device.userId, deviceId: 'tablet', rootKey: device.rootKey });
    expect(await claimOne(client, device, claimId)).toEqual(first);
  });

  test('for other devices is refused; the id of another caller is another claim', async () => {
    const [a, b] = (await Promise.all([newDevice(), newDevice()])) as [TestDevice, TestDevice];
    const claimId = randomUUID();
    const asking = await service.asRegistered({ userId: newUser(), deviceId: 'asking' });
    expect(keysOf(await claimOne(asking, a, claimId))).toEqual([1, 2, PrekeyKind.ONE_TIME]);
    expect(await refusalOf(claimOne(asking, b, claimId))).toMatchObject({
      code: Code.AlreadyExists,
      reason: 'REQUEST_ID_REUSED',
      metadata: { request_id: claimId },
    });
    expect(keysOf(await claimOne(service.asService('session'), a, claimId))).toEqual([2, 3, PrekeyKind.ONE_TIME]);
    expect(await service.db.query(unclaimed, [b.userId])).toEqual([{ one_time: 3n, kem: 3n }]);
  });

  test('at the same time, on two replicas, agrees and takes one key', async () => {
    const device = await newDevice({ oneTime: 20, kem: 20 });
    const clients = [service.asService('session'), service.asService('session', { replica: 1 })];
    const claimId = randomUUID();
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, i) => claimOne(clients[i % 2] as IdentityKeysClient, device, claimId)),
    );
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    expect(await service.db.query(unclaimed, [device.userId])).toEqual([{ one_time: 19n, kem: 19n }]);
  });
});

describe('forty claimers of one device with a hundred prekeys, on two replicas', () => {
  test('get each prekey once, none is told "none left" too early, and repetitions get their own again', async () => {
    const device = await newDevice({ oneTime: 100, kem: 100 });
    const clients = await Promise.all(
      Array.from({ length: 40 }, (_, i) =>
        service.asRegistered({ userId: newUser(), deviceId: 'asking' }, { replica: i % 2 }),
      ),
    );
    const claims: { claimId: string; client: IdentityKeysClient; result: ClaimResult }[] = [];
    await Promise.all(
      clients.map(async (client) => {
        for (let i = 0; i < 3; i++) {
          const claimId = randomUUID();
          claims.push({ claimId, client, result: await claimOne(client, device, claimId) });
          expect(await claimOne(client, device, claimId)).toEqual(
            claims.find((claim) => claim.claimId === claimId)?.result,
          );
        }
      }),
    );
    const oneTime = claims.flatMap(({ result }) => result.bundle?.oneTimePrekey?.keyId ?? []);
    const kem = claims.flatMap(({ result: { bundle } }) =>
      bundle?.kemPrekeyKind === PrekeyKind.ONE_TIME ? [bundle.kemPrekey?.keyId] : [],
    );
    expect(claims).toHaveLength(120);
    expect(new Set(oneTime).size).toBe(100);
    expect(oneTime).toHaveLength(100);
    expect(new Set(kem).size).toBe(100);
    expect(kem).toHaveLength(100);
    const lastResort = claims.filter(({ result }) => result.bundle?.kemPrekeyKind === PrekeyKind.LAST_RESORT);
    expect(lastResort).toHaveLength(20);
    for (const { result } of lastResort) expect(result.bundle?.kemPrekey?.keyId).toBe(1);
    for (const { claimId, client, result } of claims) expect(await claimOne(client, device, claimId)).toEqual(result);
    expect(await service.db.query(unclaimed, [device.userId])).toEqual([{ one_time: 0n, kem: 0n }]);
  });

  test('of several devices at once, in opposite orders and down to nothing, neither block each other nor miss a key', async () => {
    const devices = await Promise.all(Array.from({ length: 6 }, () => newDevice({ oneTime: 10, kem: 10 })));
    const asked = devices.map(({ userId, deviceId }) => ({ userId, deviceId }));
    const clients = [service.asService('session'), service.asService('session', { replica: 1 })];
    const answers = await Promise.all(
      Array.from({ length: 14 }, (_, i) =>
        (clients[i % 2] as IdentityKeysClient).claimPrekeyBundles({
          claimId: randomUUID(),
          devices: i % 4 < 2 ? asked : asked.toReversed(),
        }),
      ),
    );
    for (const { userId } of asked) {
      const taken = answers.flatMap(({ results }) => results.filter(({ device }) => device?.userId === userId));
      const ids = taken.flatMap(({ bundle }) => bundle?.oneTimePrekey?.keyId ?? []);
      expect(ids.toSorted((a, b) => a - b)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
      expect(taken.filter(({ bundle }) => bundle?.kemPrekeyKind === PrekeyKind.LAST_RESORT)).toHaveLength(4);
    }
  });
});

describe('a pool that runs low', () => {
  test('is told once per filling, to the application and to the device', async () => {
    const device = await newDevice({ oneTime: 7, kem: 6 });
    const connection = await connect({ servers: new URL(service.natsUrl).host });
    const low = connection.subscribe('keytrail.identitykeys.v1.prekeys_low');
    const notifications = connection.subscribe('keytrail.identitykeys.v1.notification_requested');
    const nextOf = async (subscription: typeof low) => {
      for await (const message of subscription) return message.data;
      throw new Error('the subscription ended');
    };
    await connection.flush();
    const client = service.asService('session');
    for (let i = 0; i < 2; i++) await claimOne(client, device);
    const event = fromBinary(PrekeysLowSchema, await nextOf(low));
    expect(event).toMatchObject({ userId: device.userId, deviceId: 'phone', oneTime: 5, kem: 4 });
    const { devices, notification } = fromBinary(NotificationRequestedSchema, await nextOf(notifications));
    expect(devices).toMatchObject([{ userId: device.userId, deviceId: 'phone' }]);
    expect(notification?.kind).toBe(NotificationKind.PREKEYS_LOW);

    for (let i = 0; i < 6; i++) await claimOne(client, device);
    const owner = await service.asDevice(device);
    await owner.replenishPrekeys({
      requestId: randomUUID(),
      oneTimePrekeys: makeOneTimePrekeys(50, 5),
      oneTimeKemPrekeys: makeKemPrekeys(device, 50, 5),
    });
    const lowAgain = connection.subscribe('keytrail.identitykeys.v1.prekeys_low');
    await connection.flush();
    await claimOne(client, device);
    expect(fromBinary(PrekeysLowSchema, await nextOf(lowAgain))).toMatchObject({ oneTime: 4, kem: 4 });
    await connection.close();
  });
});
