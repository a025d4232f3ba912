import { randomUUID } from 'node:crypto';
import { Code } from '@connectrpc/connect';
import { type ClaimResult, PrekeyKind } from '@keytrail/contracts';
import { fingerprintOf, publicKeyHash } from '@keytrail/crypto';
import { statement } from '@keytrail/storage';
import { afterEach, describe, expect, test } from 'vitest';
import { sweepPrekeys } from '../src/jobs/watch-prekeys.ts';
import { makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';
import { copyDatabase, copyServer, type EarlierCopy, switchTimeline } from './set-back.ts';

let service: IdentityKeysUnderTest;
async function start(
  settings: Record<string, string> = {},
  { replicas = 2, ownPostgres = false }: { replicas?: number; ownPostgres?: boolean } = {},
): Promise<void> {
  service = await startIdentityKeys({
    replicas,
    ownPostgres,
    settings: { KEYTRAIL_FENCE_LOOK_MS: '50', ...settings },
  });
}
afterEach(() => service?.stop());

const readState = statement(
  'test_fence_state',
  `SELECT position, closed, incarnation, (SELECT count(*) FROM database_restores WHERE handled_at IS NOT NULL)::int AS handled,
          (SELECT because FROM database_restores ORDER BY noticed_at DESC LIMIT 1) AS because
     FROM restore_fence`,
);
interface State {
  readonly position: bigint;
  readonly closed: boolean;
  readonly incarnation: string;
  readonly handled: number;
  readonly because: string | null;
}
const state = async () => (await service.db.query<State>(readState, []))[0] as State;

const pools = statement(
  'test_fence_pools',
  `SELECT (SELECT count(*)::int FROM unclaimed_one_time_prekeys) AS one_time, (SELECT count(*)::int FROM unclaimed_one_time_kem_prekeys) AS kem`,
);

/** Each prekey that was handed out, as `device/kind/id`. */
type Issued = string[];

async function claim(
  issued: Issued,
  devices: readonly TestDevice[],
  { replica, times }: { replica: number; times: number },
) {
  const client = service.asService('session', { replica });
  const claimed = await Promise.all(
    Array.from({ length: times }, () =>
      client.claimPrekeyBundles(
        { claimId: randomUUID(), devices: devices.map(({ userId, deviceId }) => ({ userId, deviceId })) },
        { timeoutMs: 30_000 },
      ),
    ),
  );
  const results = claimed.flatMap(({ results }) => results);
  for (const { bundle, device } of results) {
    if (bundle?.oneTimePrekey) issued.push(`${device?.userId}/one-time/${bundle.oneTimePrekey.keyId}`);
    if (bundle?.kemPrekeyKind === PrekeyKind.ONE_TIME) issued.push(`${device?.userId}/kem/${bundle.kemPrekey?.keyId}`);
  }
  return results;
}

const registerThree = () =>
  Promise.all(
    [1, 2, 3].map(
      async () => (await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 40, kem: 40 })).device,
    ),
  );

/** What is handed out from now on is known outside the database to have been. */
async function comesFurtherThan(position: bigint): Promise<void> {
  await expect.poll(async () => (await state()).position, { timeout: 10_000 }).toBeGreaterThan(position + 1n);
}

function twice(issued: Issued): string[] {
  return issued.filter((each, at) => issued.indexOf(each) !== at);
}

/** Claims, takes a copy, claims more, puts the copy back. */
async function setBack(
  devices: readonly TestDevice[],
  issued: Issued,
  take: () => Promise<EarlierCopy>,
): Promise<State> {
  await claim(issued, devices, { replica: 0, times: 5 });
  const before = await state();
  const copy = await take();
  await claim(issued, devices, { replica: 0, times: 10 });
  await claim(issued, devices, { replica: 1, times: 10 });
  await comesFurtherThan(before.position);
  await copy.putBack();
  return before;
}

async function refill(device: TestDevice, firstKeyId: number): Promise<void> {
  const client = await service.asDevice(device);
  await client.replenishPrekeys({
    requestId: randomUUID(),
    oneTimePrekeys: makeOneTimePrekeys(firstKeyId, 10),
    oneTimeKemPrekeys: makeKemPrekeys(device, firstKeyId, 10),
  });
}

describe.for([
  { what: 'its whole server', ownPostgres: true, take: () => copyServer(service) },
  { what: 'the one database', ownPostgres: false, take: () => copyDatabase(service) },
])('a database that was set back: $what', ({ ownPostgres, take }) => {
  test('hands out no prekey again that was claimed in the time that is gone, through services that ran all the while', async () => {
    await start({}, { ownPostgres });
    const devices = await registerThree();
    const issued: Issued = [];
    const before = await setBack(devices, issued, take);
    const after = await Promise.all([0, 1].map((replica) => claim(issued, devices, { replica, times: 15 })));
    expect(twice(issued)).toEqual([]);
    expect(
      after.flat().every(({ bundle }) => bundle?.kemPrekeyKind === PrekeyKind.LAST_RESORT && !bundle.oneTimePrekey),
    ).toBe(true);
    expect(await service.db.query(pools, [])).toEqual([{ one_time: 0, kem: 0 }]);
    const now = await state();
    expect(now).toMatchObject({ closed: false, handled: before.handled + 1 });
    expect(now.incarnation).not.toBe(before.incarnation);

    for (const device of devices) await refill(device, 1_001);
    const [fresh] = await claim(issued, devices, { replica: 0, times: 1 });
    expect((fresh as ClaimResult).bundle?.oneTimePrekey?.keyId).toBe(1_001);
    expect(twice(issued)).toEqual([]);
    expect((await state()).handled).toBe(before.handled + 1);
  }, 120_000);

  test('hands out no prekey again through a service that is started only afterwards', async () => {
    await start({}, { ownPostgres });
    const devices = await registerThree();
    const issued: Issued = [];
    const before = await setBack(devices, issued, async () => {
      const copy = await take();
      return {
        async putBack() {
          await Promise.all([service.stopReplica(0), service.stopReplica(1)]);
          await copy.putBack();
        },
      };
    });
    expect((await state()).handled).toBe(before.handled);
    const [first, second] = [await service.addReplica(), await service.addReplica()];
    await Promise.all([first, second].map((replica) => claim(issued, devices, { replica, times: 15 })));
    expect(twice(issued)).toEqual([]);
    expect((await state()).handled).toBe(before.handled + 1);
  }, 120_000);
});

describe('while NATS is away', () => {
  test('claims go on though PostgreSQL is restarted, and wait when it was set back; whoever comes later finishes what was begun', async () => {
    await start({}, { ownPostgres: true });
    const devices = await registerThree();
    const issued: Issued = [];
    await claim(issued, devices, { replica: 0, times: 2 });
    const before = await state();
    const copy = await copyServer(service);
    await claim(issued, devices, { replica: 0, times: 10 });
    await comesFurtherThan(before.position);

    await service.nats.halt?.();
    await service.postgres.restart?.();
    const meanwhile = await claim(issued, devices, { replica: 1, times: 2 });
    expect(meanwhile.every(({ bundle }) => bundle?.oneTimePrekey !== undefined)).toBe(true);

    await copy.putBack();
    for (const replica of [0, 1])
      expect(await refusalOf(claim(issued, devices, { replica, times: 1 }))).toMatchObject({
        code: Code.Unavailable,
        reason: 'DATABASE_RESTORED',
        metadata: { service: 'identity-keys' },
        retryAfterMs: 1_000,
      });
    const { userId, deviceId } = devices[0] as TestDevice;
    await (await service.asDevice({ userId, deviceId })).getPrekeyStatus({});
    expect(await state()).toMatchObject({ closed: true, handled: before.handled });

    await Promise.all([service.stopReplica(0), service.stopReplica(1)]);
    await service.nats.restart?.();
    const successor = await service.addReplica();
    await claim(issued, devices, { replica: successor, times: 5 });
    expect(twice(issued)).toEqual([]);
    expect(await state()).toMatchObject({ closed: false, handled: before.handled + 1 });
  }, 120_000);
});

test('a JetStream that lost everything voids nothing', async () => {
  await start();
  const devices = await registerThree();
  const issued: Issued = [];
  await claim(issued, devices, { replica: 0, times: 2 });
  const before = await state();
  await service.nats.restart?.({ empty: true });
  await comesFurtherThan(before.position);
  const started = await service.addReplica();
  for (const replica of [0, started]) {
    const results = await claim(issued, devices, { replica, times: 2 });
    expect(results.every(({ bundle }) => bundle?.oneTimePrekey !== undefined)).toBe(true);
  }
  expect(await state()).toMatchObject({ closed: false, handled: 0, incarnation: before.incarnation });
}, 120_000);

test.for([
  { meaning: 'loses-nothing', handled: 0, oneTime: true },
  { meaning: 'may-lose', handled: 1, oneTime: false },
])(
  'a new timeline, where a promotion $meaning: whether prekeys are voided',
  { timeout: 120_000 },
  async ({ meaning, handled, oneTime }) => {
    await start({ KEYTRAIL_TIMELINE_SWITCH: meaning }, { ownPostgres: true });
    const devices = await registerThree();
    const issued: Issued = [];
    await claim(issued, devices, { replica: 0, times: 2 });
    await switchTimeline(service);
    for (const replica of [0, 1]) {
      const results = await claim(issued, devices, { replica, times: 2 });
      expect(results.every(({ bundle }) => (bundle?.oneTimePrekey !== undefined) === oneTime)).toBe(true);
    }
    expect(twice(issued)).toEqual([]);
    expect(await state()).toMatchObject({ closed: false, handled });
  },
);

test('a device is not asked to upload prekeys once more that its database has lost: they may have been claimed', async () => {
  await start({}, { replicas: 1 });
  const [device] = (await registerThree()) as [TestDevice];
  const copy = await copyDatabase(service);
  const oneTimePrekeys = makeOneTimePrekeys(501, 3);
  const lost = oneTimePrekeys.map(({ keyId, publicKey }) => ({
    keyId,
    fingerprint: fingerprintOf({ keyId, hash: publicKeyHash(publicKey) }),
  }));
  const client = await service.asDevice(device);
  const check = () =>
    client.checkKeys({
      digest: new Uint8Array(32),
      signedPrekey: { keyId: 1, fingerprint: new Uint8Array(8) },
      lastResortPrekey: { keyId: 1, fingerprint: new Uint8Array(8) },
      oneTimePrekeys: lost,
    });
  expect((await check()).oneTimePrekeys?.neverUploaded).toEqual([501, 502, 503]);
  await client.replenishPrekeys({ requestId: randomUUID(), oneTimePrekeys });
  await comesFurtherThan((await state()).position);
  await copy.putBack();
  await expect.poll(async () => (await state()).handled, { timeout: 10_000 }).toBe(1);
  const checked = await check();
  expect(checked.oneTimePrekeys?.neverUploaded).toEqual([]);
  expect(checked.status).toMatchObject({ refillDue: true });
});

test('every device is asked to refill by the next sweep, also one that had just been told', async () => {
  await start({}, { replicas: 1 });
  const devices = await registerThree();
  const limits = {
    lowBelow: 20,
    refillTo: 100,
    signedMaxAgeMs: 1e9,
    lastResortMaxAgeMs: 1e9,
    oneTimeMaxAgeMs: 1e9,
    graceMs: 1e9,
  };
  await service.db.pool.query(
    'INSERT INTO low_prekey_notices (device_number, prekeys_added, noticed_at) SELECT device_number, 80, now() FROM devices LIMIT 1',
  );
  const before = await state();
  const copy = await copyDatabase(service);
  await comesFurtherThan(before.position);
  await copy.putBack();
  await expect.poll(async () => (await state()).handled, { timeout: 10_000 }).toBe(1);
  await sweepPrekeys({ db: service.db, limits, reminderMs: 3_600_000 });
  const { rows } = await service.db.pool.query('SELECT count(*)::int AS told FROM low_prekey_notices');
  expect(rows).toEqual([{ told: devices.length }]);
}, 120_000);

test('a revocation after a restore has a number that nobody has read past, though the database forgot how far it was', async () => {
  await start({}, { replicas: 1 });
  const [kept, lost, later] = (await registerThree()) as [TestDevice, TestDevice, TestDevice];
  const told = async (after: bigint) => (await service.asService('session').listRevokedDevices({ after })).revocations;
  const newest = async () => (await told(0n)).at(-1)?.number ?? 0n;
  await service.revoke(kept.userId);
  const before = await state();
  const copy = await copyDatabase(service);
  await service.revoke(lost.userId);
  const readTo = await newest();
  await comesFurtherThan(before.position);
  await copy.putBack();
  await expect.poll(async () => (await state()).handled, { timeout: 10_000 }).toBe(1);
  await service.revoke(later.userId);
  expect(await told(readTo)).toMatchObject([{ device: { userId: later.userId, deviceId: 'phone' } }]);
}, 120_000);
