import { randomUUID } from 'node:crypto';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { Logger } from '@keytrail/telemetry';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { startForgetting } from '../src/jobs/forget-old-claims.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

test('claims and request ids are forgotten after seven days, permissions when they are over, and not before', async () => {
  const { device } = await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 2, kem: 2 });
  const devices = [{ userId: device.userId, deviceId: device.deviceId }];
  const [old, recent] = [randomUUID(), randomUUID()];
  const client = service.asService('session');
  const operator = await service.asOperator();
  const expiresAt = timestampFromDate(new Date(Date.now() + 3_600_000));
  await operator.setClaimPermission({ requestId: randomUUID(), userId: newUser(), targetUserId: newUser(), expiresAt });
  await client.claimPrekeyBundles({ claimId: old, devices });
  const kept = await client.claimPrekeyBundles({ claimId: recent, devices });
  await service.db.pool.query("UPDATE claims SET claimed_at = now() - interval '7 days 1 second' WHERE claim_id = $1", [
    old,
  ]);
  await service.db.pool.query("UPDATE request_ids SET created_at = now() - interval '6 days 23 hours'");

  expect(await forgottenOnce()).toEqual({ claims: [recent], requestIds: true, permissions: true });
  expect(await client.claimPrekeyBundles({ claimId: recent, devices })).toEqual(kept);
  const { rows: keys } = await service.db.pool.query(
    'SELECT count(public_key) AS whole, count(*) AS all FROM one_time_prekeys k JOIN devices d USING (device_number) WHERE d.user_id = $1',
    [device.userId],
  );
  expect(keys).toEqual([{ whole: 1n, all: 2n }]);

  await service.db.pool.query("UPDATE request_ids SET created_at = now() - interval '7 days 1 second'");
  await service.db.pool.query("UPDATE claim_permissions SET expires_at = now() - interval '1 second'");
  expect(await forgottenOnce()).toEqual({ claims: [recent], requestIds: false, permissions: false });
});

test('what operators did is forgotten after its retention, and never before thirty days', async () => {
  const record = (note: string, age: string) =>
    service.db.pool.query(
      `INSERT INTO audit_log (operator, action, note, trace_id, happened_at) VALUES ('ops', 'revoke_device', $1, '', now() - $2::interval)`,
      [note, age],
    );
  await record('two months ago', '60 days');
  await record('four weeks ago', '28 days');
  const notes = async () =>
    (await service.db.pool.query(`SELECT note FROM audit_log WHERE note LIKE '%ago' ORDER BY number`)).rows;
  await forgottenOnce(90 * 24 * 60 * 60 * 1000);
  expect(await notes()).toEqual([{ note: 'two months ago' }, { note: 'four weeks ago' }]);
  await forgottenOnce();
  expect(await notes()).toEqual([{ note: 'four weeks ago' }]);
});

/** What is left after everything has been forgotten once that is to be forgotten now. */
async function forgottenOnce(auditLogRetentionMs = 1) {
  const done: string[] = [];
  const log = { info: (_: object, what: string) => void done.push(what), warn: () => {} } as unknown as Logger;
  const { pool } = service.db;
  const forgetting = startForgetting({ db: service.db, log, everyMs: 3_600_000, graceMs: 0, auditLogRetentionMs });
  await vi.waitFor(() => expect(done).toEqual(['old claims forgotten']), 10_000);
  await forgetting.stop();
  const { rows: claims } = await pool.query('SELECT claim_id FROM claims ORDER BY claimed_at');
  const { rows: requestIds } = await pool.query('SELECT FROM request_ids LIMIT 1');
  const { rows: permissions } = await pool.query('SELECT FROM claim_permissions LIMIT 1');
  return {
    claims: claims.map(({ claim_id }) => claim_id),
    requestIds: requestIds.length > 0,
    permissions: permissions.length > 0,
  };
}
