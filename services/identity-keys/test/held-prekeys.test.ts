import { randomUUID } from 'node:crypto';
import { type ClaimResult, PrekeyKind } from '@keytrail/contracts';
import { statement, type Transaction } from '@keytrail/storage';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { digestDevices } from '../src/domain/claim-request.ts';
import { claimWaiting } from '../src/store/claims.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

interface Device {
  readonly userId: string;
  readonly deviceId: string;
}

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ replicas: 2, settings: { KEYTRAIL_DATABASE_CONNECTIONS: '25' } });
});
afterAll(() => service?.stop());

const waiting = statement(
  'test_waiting',
  `SELECT count(*) AS waiting FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event <> 'advisory'`,
);

async function untilWaiting(claims: number): Promise<void> {
  await vi.waitFor(async () => {
    const [row] = await service.db.query<{ waiting: bigint }>(waiting, []);
    expect(row?.waiting).toBe(BigInt(claims));
  }, 10_000);
}

async function newDevice(oneTime: number, kem = oneTime): Promise<Device> {
  const { device } = await service.register({ userId: newUser(), deviceId: 'phone', oneTime, kem });
  return { userId: device.userId, deviceId: device.deviceId };
}

async function claim(devices: readonly Device[], replica = 0): Promise<ClaimResult[]> {
  const client = service.asService('session', { replica });
  return (await client.claimPrekeyBundles({ claimId: randomUUID(), devices: [...devices] })).results;
}

function keysOf({ bundle }: ClaimResult) {
  return [bundle?.oneTimePrekey?.keyId, bundle?.kemPrekey?.keyId, bundle?.kemPrekeyKind];
}

class RolledBack extends Error {}

/** Takes prekeys in a transaction of its own and holds them until told how to end. */
async function hold(devices: readonly Device[]) {
  const { promise: end, resolve } = Promise.withResolvers<'commit' | 'roll back'>();
  const taken = Promise.withResolvers<void>();
  const ended = service.db
    .transaction(async (tx: Transaction) => {
      const claimed = { caller: 'test', claimId: randomUUID(), devices, devicesDigest: digestDevices(devices) };
      await claimWaiting(tx, claimed);
      taken.resolve();
      if ((await end) === 'roll back') throw new RolledBack();
    })
    .catch((error: unknown) => {
      taken.reject(error);
      if (!(error instanceof RolledBack)) throw error;
    });
  await taken.promise;
  const release = async (how: 'commit' | 'roll back') => {
    resolve(how);
    await ended;
  };
  held.push(release);
  return release;
}

// A test that fails before it releases what it holds must not hang the rest.
const held: ((how: 'roll back') => Promise<void>)[] = [];
afterEach(() => Promise.all(held.splice(0).map((release) => release('roll back'))));

describe('the last prekey, held by another claim', () => {
  test('is handed out when that claim is rolled back: nobody is told "none left" meanwhile', async () => {
    const device = await newDevice(1);
    const release = await hold([device]);
    const answer = claim([device]);
    await untilWaiting(1);
    await release('roll back');
    expect((await answer).map(keysOf)).toEqual([[1, 2, PrekeyKind.ONE_TIME]]);
  });

  test('is gone when that claim is committed: only then the last-resort prekey is handed out', async () => {
    const device = await newDevice(1);
    const release = await hold([device]);
    const answer = claim([device]);
    await untilWaiting(1);
    await release('commit');
    expect((await answer).map(keysOf)).toEqual([[undefined, 1, PrekeyKind.LAST_RESORT]]);
  });

  test('goes to one of those who wait', async () => {
    const device = await newDevice(1);
    const release = await hold([device]);
    const answers = [claim([device]), claim([device], 1), claim([device])];
    await untilWaiting(3);
    await release('roll back');
    const kinds = (await Promise.all(answers)).map(([result]) => result?.bundle?.kemPrekeyKind);
    expect(kinds.toSorted()).toEqual([PrekeyKind.ONE_TIME, PrekeyKind.LAST_RESORT, PrekeyKind.LAST_RESORT]);
  });

  test('is waited for by kind: a pool that is not held answers at once', async () => {
    const device = await newDevice(0, 1);
    const release = await hold([device]);
    const answer = claim([device]);
    await untilWaiting(1);
    await release('roll back');
    expect((await answer).map(keysOf)).toEqual([[undefined, 2, PrekeyKind.ONE_TIME]]);
  });

  test('does not hold up claims of devices that have other prekeys', async () => {
    const device = await newDevice(2);
    const release = await hold([device]);
    expect((await claim([device])).map(keysOf)).toEqual([[2, 3, PrekeyKind.ONE_TIME]]);
    await release('roll back');
    expect((await claim([device])).map(keysOf)).toEqual([[1, 2, PrekeyKind.ONE_TIME]]);
  });

  test('is not needed when prekeys are added while a claim waits', async () => {
    const device = await newDevice(1);
    const release = await hold([device]);
    const answer = claim([device]);
    await untilWaiting(1);
    await service.db.query(addByHand, [device.userId]);
    await release('commit');
    expect((await answer).map((result) => keysOf(result)[0])).toEqual([77]);
  });
});

describe('claims that wait for each other’s devices', () => {
  test('in opposite orders never deadlock', async () => {
    const a = await newDevice(1);
    const b = await newDevice(1);
    const release = [await hold([a]), await hold([b])];
    const answers = [claim([a, b]), claim([b, a], 1), claim([a, b], 1), claim([b, a])];
    await untilWaiting(4);
    for (const end of release) await end('roll back');
    const results = (await Promise.all(answers)).flat();
    for (const { userId } of [a, b]) {
      const kinds = results.filter((r) => r.device?.userId === userId).map((r) => r.bundle?.kemPrekeyKind);
      expect(kinds.filter((kind) => kind === PrekeyKind.ONE_TIME)).toHaveLength(1);
    }
    const [row] = await service.db.query<{ deadlocks: bigint }>(countDeadlocks, []);
    expect(row?.deadlocks).toBe(0n);
  });
});

describe('as many claims as prekeys, among claims that roll back', () => {
  test('all get a prekey of their own', async () => {
    const prekeys = 40;
    const device = await newDevice(prekeys);
    const results: ClaimResult[] = [];
    const committing = Array.from({ length: 20 }, async (_, i) => {
      for (let n = 0; n < prekeys / 20; n++) results.push(...(await claim([device], i % 2)));
    });
    let over = false;
    const rollingBack = Array.from({ length: 20 }, async () => {
      while (!over) await (await hold([device]))('roll back');
    });
    await Promise.all(committing);
    over = true;
    await Promise.all(rollingBack);
    const ids = results.map(({ bundle }) => bundle?.oneTimePrekey?.keyId);
    expect(ids).not.toContain(undefined);
    expect(new Set(ids).size).toBe(prekeys);
    expect(results.every(({ bundle }) => bundle?.kemPrekeyKind === PrekeyKind.ONE_TIME)).toBe(true);
  });
});

const addByHand = statement(
  'test_add_by_hand',
  `WITH device AS (SELECT device_number FROM devices WHERE user_id = $1),
   key AS (INSERT INTO one_time_prekeys SELECT device_number, 77, decode(repeat('07', 32), 'hex') FROM device)
   INSERT INTO unclaimed_one_time_prekeys SELECT device_number, 2, 77 FROM device`,
);
const countDeadlocks = statement(
  'test_deadlocks',
  'SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()',
);
