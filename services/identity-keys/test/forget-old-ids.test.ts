import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { forgetOldIds } from '../src/jobs/forget-old-ids.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

test('claims and request ids are forgotten after seven days, and not before', async () => {
  const { device } = await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 2, kem: 2 });
  const devices = [{ userId: device.userId, deviceId: device.deviceId }];
  const [old, recent] = [randomUUID(), randomUUID()];
  const client = service.asService('session');
  await client.claimPrekeyBundles({ claimId: old, devices });
  const kept = await client.claimPrekeyBundles({ claimId: recent, devices });
  await service.db.pool.query("UPDATE claims SET claimed_at = now() - interval '7 days 1 second' WHERE claim_id = $1", [
    old,
  ]);
  await service.db.pool.query("UPDATE request_ids SET created_at = now() - interval '6 days 23 hours'");

  expect(await forgetOldIds(service.db)).toMatchObject({
    claims: 1,
    requestIds: 0,
    permissions: 0,
    oneTime: 1,
    kem: 1,
  });
  expect(await client.claimPrekeyBundles({ claimId: recent, devices })).toEqual(kept);
  await service.db.pool.query("UPDATE request_ids SET created_at = now() - interval '7 days 1 second'");
  expect(await forgetOldIds(service.db)).toMatchObject({
    claims: 0,
    requestIds: 1,
    permissions: 0,
    oneTime: 0,
    kem: 0,
  });
});
