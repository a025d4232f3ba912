import { randomUUID } from 'node:crypto';
import { type ClaimResult, PrekeyKind } from '@keytrail/contracts';
import { statement } from '@keytrail/storage';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';
import { copyDatabase, copyServer, type EarlierCopy } from './set-back.ts';

let service: IdentityKeysUnderTest;
beforeEach(async () => {
  service = await startIdentityKeys({ replicas: 2, ownPostgres: true, settings: { KEYTRAIL_FENCE_LOOK_MS: '50' } });
}, 60_000);
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
  { what: 'its whole server', take: () => copyServer(service) },
  { what: 'the one database', take: () => copyDatabase(service) },
])('a database that was set back: $what', ({ take }) => {
  test('hands out no prekey again that was claimed in the time that is gone, through services that ran all the while', async () => {
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
  }, 60_000);

  test('hands out no prekey again through a service that is started only afterwards', async () => {
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
  }, 60_000);
});
