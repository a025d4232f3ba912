import { randomUUID } from 'node:crypto';
import { statement, type Transaction } from '@keytrail/storage';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { digestDevices } from '../src/domain/claim-request.ts';
import { claimWaiting } from '../src/store/claims.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

const waiting = statement(
  'test_waiting_for_claim',
  `SELECT count(*) AS waiting FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event <> 'advisory'`,
);
const unclaimed = statement(
  'test_unclaimed_by_user',
  `SELECT count(*) AS unclaimed FROM unclaimed_one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1`,
);

async function untilAnotherWaits(): Promise<void> {
  await vi.waitFor(async () => {
    const [row] = await service.db.query<{ waiting: bigint }>(waiting, []);
    expect(row?.waiting).toBe(1n);
  }, 20_000);
}

test('a claim under an id whose first claim is not committed yet waits for it, and gets its bundle', async () => {
  const userId = newUser();
  const { device } = await service.register({ userId, deviceId: 'phone', oneTime: 3, kem: 3 });
  const devices = [{ userId, deviceId: device.deviceId }];
  const claimId = randomUUID();
  const caller = { userId: newUser(), deviceId: 'asking' };
  const asking = await service.asRegistered(caller);
  const claim = {
    caller: `device:${caller.userId}/${caller.deviceId}`,
    claimId,
    devices,
    devicesDigest: digestDevices(devices),
  };
  const again = await service.db.transaction(async (tx: Transaction) => {
    await claimWaiting(tx, claim);
    const answer = asking.claimPrekeyBundles({ claimId, devices });
    await Promise.race([answer, untilAnotherWaits()]);
    return { answer };
  });
  const { results } = await again.answer;
  expect(results[0]?.bundle?.oneTimePrekey?.keyId).toBe(1);
  expect(await service.db.query(unclaimed, [userId])).toEqual([{ unclaimed: 2n }]);
});
