import { randomUUID } from 'node:crypto';
import type { PrekeyBundle } from '@keytrail/contracts';
import { statement, type Transaction } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { digestDevices } from '../src/domain/claim-request.ts';
import { claimWaiting } from '../src/store/claims.ts';
import { makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ replicas: 2 });
});
afterAll(() => service?.stop());

async function newDevice(oneTime: number): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone', oneTime, kem: oneTime })).device;
}

const ref = ({ userId, deviceId }: TestDevice) => ({ userId, deviceId });

async function claim(device: TestDevice, replica = 0): Promise<PrekeyBundle> {
  const claimed = { claimId: randomUUID(), devices: [ref(device)] };
  const { results } = await service.asService('session', { replica }).claimPrekeyBundles(claimed);
  return results[0]?.bundle as PrekeyBundle;
}

async function retire(device: TestDevice, retireOneTimeKeyIds: number[], retireKemKeyIds: number[] = [], replica = 0) {
  const client = await service.asDevice(device, { replica });
  const request = { requestId: randomUUID(), retireOneTimeKeyIds, retireKemKeyIds };
  const { counts, retired } = await client.replenishPrekeys(request);
  return [retired?.oneTime, retired?.kem, counts?.oneTime, counts?.kem];
}

describe('retired prekeys', () => {
  test('are not handed out any more, and are counted in the status for good', async () => {
    const device = await newDevice(4);
    expect(await retire(device, [1, 3], [2])).toEqual([2, 1, 2, 3]);
    expect((await claim(device)).oneTimePrekey?.keyId).toBe(2);
    expect((await claim(device)).oneTimePrekey?.keyId).toBe(4);
    expect((await claim(device)).oneTimePrekey).toBeUndefined();
    const { status } = await (await service.asDevice(device)).getPrekeyStatus({});
    expect(status).toMatchObject({ retired: { oneTime: 2, kem: 1 }, counts: { oneTime: 0, kem: 0 } });
  });

  test('pass over those that are claimed, retired already, or unknown', async () => {
    const device = await newDevice(3);
    const { oneTimePrekey, kemPrekey } = await claim(device);
    expect(await retire(device, [oneTimePrekey?.keyId ?? 0, 77], [kemPrekey?.keyId ?? 0, 1])).toEqual([0, 0, 2, 2]);
    expect(await retire(device, [2, 3])).toEqual([2, 0, 0, 2]);
    expect(await retire(device, [2, 3])).toEqual([0, 0, 0, 2]);
  });

  test('keep their ids: the same key again is a no-op, another key a conflict', async () => {
    const device = await newDevice(0);
    const [oneTimePrekeys, oneTimeKemPrekeys] = [makeOneTimePrekeys(5, 1), makeKemPrekeys(device, 5, 1)];
    const client = await service.asDevice(device);
    const upload = { requestId: randomUUID(), oneTimePrekeys, oneTimeKemPrekeys };
    await client.replenishPrekeys(upload);
    expect(await retire(device, [5], [5])).toEqual([1, 1, 0, 0]);
    const again = await client.replenishPrekeys({ ...upload, requestId: randomUUID() });
    expect(again.counts).toMatchObject({ oneTime: 0, kem: 0 });
    for (const other of [
      { oneTimePrekeys: makeOneTimePrekeys(5, 1) },
      { oneTimeKemPrekeys: makeKemPrekeys(device, 5, 1) },
    ])
      expect(await refusalOf(client.replenishPrekeys({ requestId: randomUUID(), ...other }))).toMatchObject({
        reason: 'PREKEY_ID_CONFLICT',
      });
  });

  test('make room in the pool for those of the same call', async () => {
    const device = await newDevice(2);
    const client = await service.asDevice(device);
    const { counts, retired } = await client.replenishPrekeys({
      requestId: randomUUID(),
      retireOneTimeKeyIds: [1, 2],
      oneTimePrekeys: makeOneTimePrekeys(50, 3),
    });
    expect([counts, retired]).toMatchObject([{ oneTime: 3 }, { oneTime: 2 }]);
  });
});

describe('a prekey that a claim holds', () => {
  const waiting = statement(
    'test_waiting_for_claims',
    `SELECT count(*) AS waiting FROM pg_stat_activity
      WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event <> 'advisory'`,
  );

  test.for(['commits', 'rolls back'] as const)(
    'is waited for, and retired only if the claim fails (%s)',
    async (how) => {
      const device = await newDevice(2);
      const end = Promise.withResolvers<void>();
      onTestFinished(() => end.resolve());
      const taken = Promise.withResolvers<void>();
      const claiming = service.db
        .transaction(async (tx: Transaction) => {
          const devices = [ref(device)];
          const claimed = { caller: 'test', claimId: randomUUID(), devices, devicesDigest: digestDevices(devices) };
          await claimWaiting(tx, claimed);
          taken.resolve();
          await end.promise;
          if (how === 'rolls back') throw new Error('rolled back by the test');
        })
        .catch((error: unknown) => taken.reject(error));
      await taken.promise;
      const retiring = retire(device, [1, 2], [2, 3]);
      await vi.waitFor(async () => {
        const [row] = await service.db.query<{ waiting: bigint }>(waiting, []);
        expect(row?.waiting).toBe(1n);
      }, 10_000);
      end.resolve();
      await claiming;
      expect(await retiring).toEqual(how === 'commits' ? [1, 1, 0, 0] : [2, 2, 0, 0]);
    },
  );
});

describe('retiring while twenty claimers claim on two replicas', () => {
  test('never counts a claimed prekey as retired: each prekey was either handed out once or retired', async () => {
    const prekeys = 60;
    const device = await newDevice(prekeys);
    const bundles: PrekeyBundle[] = [];
    let exhausted = false;
    const claimers = Array.from({ length: 20 }, async (_, i) => {
      while (!exhausted) {
        const bundle = await claim(device, i % 2);
        bundles.push(bundle);
        exhausted ||= !bundle.oneTimePrekey && bundle.kemPrekeyKind === 2;
      }
    });
    // From the end, so that both meet; the KEM ids are one higher.
    let [oneTime, kem] = [0, 0];
    for (let from = prekeys - 9; from >= 1; from -= 10) {
      const ids = Array.from({ length: 10 }, (_, i) => from + i);
      const [byId, byKemId] = await retire(
        device,
        ids,
        ids.map((id) => id + 1),
        from % 2,
      );
      oneTime += byId ?? 0;
      kem += byKemId ?? 0;
    }
    await Promise.all(claimers);
    const claimed = bundles.flatMap(({ oneTimePrekey }) => (oneTimePrekey ? [oneTimePrekey.keyId] : []));
    const claimedKem = bundles.flatMap(({ kemPrekey, kemPrekeyKind }) =>
      kemPrekeyKind === 1 ? [kemPrekey?.keyId] : [],
    );
    expect(new Set(claimed).size).toBe(claimed.length);
    expect([claimed.length + oneTime, claimedKem.length + kem]).toEqual([prekeys, prekeys]);
    const { status } = await (await service.asDevice(device)).getPrekeyStatus({});
    expect(status).toMatchObject({ retired: { oneTime, kem }, counts: { oneTime: 0, kem: 0 } });
    const { rows } = await service.db.pool.query(
      `SELECT count(*) FILTER (WHERE retired) AS retired, count(*) FILTER (WHERE retired AND key_id = ANY ($2)) AS both
         FROM one_time_prekeys k JOIN devices d USING (device_number) WHERE user_id = $1`,
      [device.userId, claimed],
    );
    expect(rows).toEqual([{ retired: BigInt(oneTime), both: 0n }]);
  });
});
