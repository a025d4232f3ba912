import { randomUUID } from 'node:crypto';
import { type ClaimResult, PrekeyKind } from '@keytrail/contracts';
import { statement } from '@keytrail/storage';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { digestDevices } from '../src/domain/claim-request.ts';
import { claimWaiting } from '../src/store/claims.ts';
import { makeDevice, makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysClient, newUser } from './identity-keys-fixture.ts';
import { type IdentityKeysProcesses, startIdentityKeysProcesses } from './identity-keys-processes.ts';

const claimers = 40;

let service: IdentityKeysProcesses;
beforeAll(async () => {
  service = await startIdentityKeysProcesses();
}, 120_000);
afterAll(() => service?.stop());

const unclaimedIds = statement(
  'test_unclaimed_ids',
  `SELECT 'one-time' AS kind, key_id FROM unclaimed_one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1
   UNION ALL
   SELECT 'kem', key_id FROM unclaimed_one_time_kem_prekeys JOIN devices USING (device_number) WHERE user_id = $1`,
);
const recordedIds = statement(
  'test_recorded_ids',
  `SELECT claim_id, one_time_prekey_ids[1] AS one_time, kem_prekey_ids[1] AS kem
     FROM claims JOIN devices d ON d.device_number = device_numbers[1] WHERE d.user_id = $1`,
);
const waiting = statement(
  'test_fault_waiting',
  `SELECT count(*) AS waiting FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event <> 'advisory'`,
);

async function newDevice(prekeys: number): Promise<TestDevice> {
  const { device, registration } = makeDevice({
    userId: newUser(),
    deviceId: 'phone',
    oneTime: Math.min(prekeys, 100),
    kem: Math.min(prekeys, 100),
  });
  const client = await service.asDevice(device, 1);
  await client.registerDevice(registration);
  for (let from = 100; from < prekeys; from += 100)
    await replenish(device, client, from, Math.min(100, prekeys - from));
  return device;
}

/** Ids go on as registration left off: one-time prekeys from 1, KEM prekeys from 2. */
async function replenish(device: TestDevice, client: IdentityKeysClient, from: number, count: number): Promise<void> {
  await client.replenishPrekeys({
    requestId: randomUUID(),
    oneTimePrekeys: makeOneTimePrekeys(from + 1, count),
    oneTimeKemPrekeys: makeKemPrekeys(device, from + 2, count),
  });
}

async function newCaller() {
  const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'asking', oneTime: 1, kem: 1 });
  await (await service.asDevice(device, 1)).registerDevice(registration);
  return { userId: device.userId, deviceId: device.deviceId };
}

async function claim(client: IdentityKeysClient, { userId, deviceId }: TestDevice, claimId: string = randomUUID()) {
  const { results } = await client.claimPrekeyBundles({ claimId, devices: [{ userId, deviceId }] });
  return results[0] as ClaimResult;
}

/** The ids of the prekeys that were taken; undefined for "none" and last resort. */
function taken({ bundle }: ClaimResult) {
  const kem = bundle?.kemPrekeyKind === PrekeyKind.ONE_TIME ? bundle.kemPrekey?.keyId : undefined;
  return { oneTime: bundle?.oneTimePrekey?.keyId, kem };
}

interface Answered {
  readonly claimId: string;
  readonly result: ClaimResult;
}

/** Nothing handed out twice, nothing lost: each prekey is unclaimed, or in one recorded claim, and each answer is what its claim records. */
async function expectWhole(device: TestDevice, prekeys: number, answers: readonly Answered[]): Promise<void> {
  const pool = await service.db.query<{ kind: string; key_id: bigint }>(unclaimedIds, [device.userId]);
  const recorded = await service.db.query<{ claim_id: string; one_time: bigint | null; kem: bigint | null }>(
    recordedIds,
    [device.userId],
  );
  const all = (kind: 'one-time' | 'kem', column: 'one_time' | 'kem') =>
    [
      ...pool.filter((row) => row.kind === kind).map((row) => Number(row.key_id)),
      ...recorded.flatMap((row) => (row[column] === null ? [] : [Number(row[column])])),
    ].toSorted((a, b) => a - b);
  expect(all('one-time', 'one_time')).toEqual(Array.from({ length: prekeys }, (_, i) => i + 1));
  expect(all('kem', 'kem')).toEqual(Array.from({ length: prekeys }, (_, i) => i + 2));
  for (const { claimId, result } of answers) {
    const record = recorded.find((row) => row.claim_id === claimId);
    const { oneTime, kem } = taken(result);
    expect([record?.one_time ?? undefined, record?.kem ?? undefined]).toEqual(
      [oneTime, kem].map((id) => (id === undefined ? undefined : BigInt(id))),
    );
  }
}

class RolledBack extends Error {}

/** Takes prekeys under this claim id in a transaction of the test's own, and gives them back when told. */
async function hold(device: TestDevice, caller = 'test', claimId: string = randomUUID()) {
  const { promise: end, resolve: letGo } = Promise.withResolvers<void>();
  const held = Promise.withResolvers<void>();
  const devices = [{ userId: device.userId, deviceId: device.deviceId }];
  const ended = service.db
    .transaction(async (tx) => {
      await claimWaiting(tx, { caller, claimId, devices, devicesDigest: digestDevices(devices) });
      held.resolve();
      await end;
      throw new RolledBack();
    })
    .catch((error: unknown) => {
      held.reject(error);
      if (!(error instanceof RolledBack)) throw error;
    });
  await held.promise;
  const rollBack = () => {
    letGo();
    return ended;
  };
  holding.push(rollBack);
  return rollBack;
}

// A test that fails while it holds prekeys must not hang the rest.
const holding: (() => Promise<void>)[] = [];
afterEach(() => Promise.all(holding.splice(0).map((rollBack) => rollBack())));

describe('a process that is killed between the commit of a claim and its answer', () => {
  test('leaves one claim: the retry at the other replica, and at its successor, gets the bundle that was taken', async () => {
    const device = await newDevice(3);
    const caller = await newCaller();
    const claimId = randomUUID();
    const [doomed, other] = [await service.asDevice(caller, 0), await service.asDevice(caller, 1)];
    const keptBack = service.replicas[0]?.database.keepBackAnswersTo('claim_prekey_bundles');
    const unheard = claim(doomed, device, claimId).then(
      () => 'answered',
      () => 'no answer',
    );
    await Promise.race([keptBack, unheard]);
    expect(await service.db.query(recordedIds, [device.userId])).toEqual([
      { claim_id: claimId, one_time: 1n, kem: 2n },
    ]);
    await service.replicas[0]?.process.kill('SIGKILL');
    expect(await unheard).toBe('no answer');

    const again = await claim(other, device, claimId);
    expect(taken(again)).toEqual({ oneTime: 1, kem: 2 });
    expect(taken(await claim(other, device))).toEqual({ oneTime: 2, kem: 3 });
    await service.revive(0);
    const revived = await service.asDevice(caller, 0);
    expect(await claim(revived, device, claimId)).toEqual(again);
    expect(taken(await claim(revived, device))).toEqual({ oneTime: 3, kem: 4 });
    await expectWhole(device, 3, [{ claimId, result: again }]);
  }, 60_000);
});

describe('a process that is killed before the commit of a claim', () => {
  test('takes nothing with it: whether the database ends the claim or rolls it back, the retry gets one bundle', async () => {
    const device = await newDevice(5);
    const caller = await newCaller();
    const claimId = randomUUID();
    const [doomed, other] = [await service.asDevice(caller, 0), await service.asDevice(caller, 1)];
    // Under the same id, so that the claim has taken its prekeys and waits to be recorded.
    const rollBack = await hold(device, `device:${caller.userId}/${caller.deviceId}`, claimId);
    const unheard = claim(doomed, device, claimId).then(
      () => 'answered',
      () => 'no answer',
    );
    await vi.waitFor(async () => {
      const [row] = await service.db.query<{ waiting: bigint }>(waiting, []);
      expect(row?.waiting).toBe(1n);
    }, 10_000);
    await service.replicas[0]?.process.kill('SIGKILL');
    expect(await unheard).toBe('no answer');
    const retried = claim(other, device, claimId);
    await rollBack();
    const result = await retried;
    expect(Object.values(taken(result))).not.toContain(undefined);
    await service.revive(0);
    expect(await claim(await service.asDevice(caller, 0), device, claimId)).toEqual(result);
    await expectWhole(device, 5, [{ claimId, result }]);
  }, 60_000);

  test('while forty claimers are at it loses and doubles no prekey: each retries at the other replica', async () => {
    const each = 4;
    const device = await newDevice(claimers * each + 20);
    const callers = await Promise.all(Array.from({ length: claimers }, newCaller));
    const clients = await Promise.all(
      callers.map(async (caller) => [await service.asDevice(caller, 0), await service.asDevice(caller, 1)] as const),
    );
    const answers: Answered[] = [];
    let retries = 0;
    let killed: Promise<void> | undefined;
    await Promise.all(
      clients.map(async ([first, second]) => {
        for (let n = 0; n < each; n++) {
          const claimId = randomUUID();
          const result = await claim(first, device, claimId).catch(() => {
            retries += 1;
            return claim(second, device, claimId);
          });
          answers.push({ claimId, result });
          if (answers.length === claimers) killed = service.replicas[0]?.process.kill('SIGKILL');
        }
      }),
    );
    await killed;
    expect(retries).toBeGreaterThan(0);
    for (const { result } of answers) expect(Object.values(taken(result))).not.toContain(undefined);
    expect(new Set(answers.map(({ result }) => taken(result).oneTime)).size).toBe(claimers * each);
    await expectWhole(device, claimers * each + 20, answers);
    await service.revive(0);
  }, 60_000);
});

describe('forty claimers of one device over two replicas', () => {
  test('are never told "none" while claims roll back and the device uploads, and get no prekey twice', async () => {
    const each = 5;
    const more = 200;
    const device = await newDevice(claimers * each + 20);
    const clients = await Promise.all(
      Array.from({ length: claimers }, async (_, i) => service.asDevice(await newCaller(), i % 2)),
    );
    const owner = await service.asDevice(device, 0);
    const answers: Answered[] = [];
    let over = false;
    const rollingBack = Array.from({ length: 8 }, async () => {
      while (!over) await (await hold(device))();
    });
    const uploading = (async () => {
      for (let n = 0; n < more; n += 50) await replenish(device, owner, claimers * each + 20 + n, 50);
    })();
    await Promise.all(
      clients.map(async (client) => {
        for (let n = 0; n < each; n++) {
          const claimId = randomUUID();
          answers.push({ claimId, result: await claim(client, device, claimId) });
        }
      }),
    );
    over = true;
    await Promise.all([...rollingBack, uploading]);
    for (const { result } of answers) expect(Object.values(taken(result))).not.toContain(undefined);
    expect(new Set(answers.map(({ result }) => taken(result).oneTime)).size).toBe(claimers * each);
    expect(new Set(answers.map(({ result }) => taken(result).kem)).size).toBe(claimers * each);
    await expectWhole(device, claimers * each + 20 + more, answers);
  }, 60_000);

  test('each get prekeys in the order of upload, and one claimer alone gets all of them in that order', async () => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone', oneTime: 0, kem: 0 });
    const owner = await service.asDevice(device, 1);
    await owner.registerDevice(registration);
    // Ids say nothing about the order: the second upload has the lower ones.
    const uploads = [
      { oneTime: makeOneTimePrekeys(500, 60), kem: makeKemPrekeys(device, 500, 60) },
      { oneTime: makeOneTimePrekeys(100, 90).toReversed(), kem: makeKemPrekeys(device, 100, 90).toReversed() },
    ];
    for (const { oneTime, kem } of uploads)
      await owner.replenishPrekeys({ requestId: randomUUID(), oneTimePrekeys: oneTime, oneTimeKemPrekeys: kem });
    const order = uploads.flatMap(({ oneTime }) => oneTime.map(({ keyId }) => keyId));

    const clients = await Promise.all(
      Array.from({ length: claimers }, async (_, i) => service.asDevice(await newCaller(), i % 2)),
    );
    const places: number[][] = await Promise.all(
      clients.map(async (client) => {
        const own: number[] = [];
        for (let n = 0; n < 3; n++) {
          const { oneTime, kem } = taken(await claim(client, device));
          expect(order).toContain(kem);
          own.push(order.indexOf(oneTime ?? 0));
        }
        return own;
      }),
    );
    for (const own of places) expect(own).toEqual(own.toSorted((a, b) => a - b));
    expect(places.flat().toSorted((a, b) => a - b)).toEqual(order.slice(0, claimers * 3).map((_, place) => place));

    const alone = await service.asDevice(await newCaller(), 0);
    const rest: unknown[] = [];
    for (let n = claimers * 3; n < order.length; n++) rest.push(taken(await claim(alone, device)));
    expect(rest).toEqual(order.slice(claimers * 3).map((keyId) => ({ oneTime: keyId, kem: keyId })));
  }, 60_000);
});

describe('two calls with one claim id at two replicas at the same time', () => {
  test('agree, fifty times over, and take one prekey each time', async () => {
    const rounds = 50;
    const device = await newDevice(rounds + 10);
    const caller = await newCaller();
    const clients = [await service.asDevice(caller, 0), await service.asDevice(caller, 1)];
    const answers: Answered[] = [];
    for (let n = 0; n < rounds; n++) {
      const claimId = randomUUID();
      const [first, second] = await Promise.all(clients.map((client) => claim(client, device, claimId)));
      expect(first).toEqual(second);
      answers.push({ claimId, result: first as ClaimResult });
    }
    expect(new Set(answers.map(({ result }) => taken(result).oneTime)).size).toBe(rounds);
    await expectWhole(device, rounds + 10, answers);
  }, 60_000);
});
