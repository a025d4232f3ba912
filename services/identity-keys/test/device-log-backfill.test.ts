import { randomBytes, randomUUID } from 'node:crypto';
import { cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { create } from '@bufbuild/protobuf';
import { DeviceListSchema, DeviceLogEntrySchema } from '@keytrail/contracts';
import { compareDeviceList, emptyDeviceLog, verifyDeviceLog } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { ensurePostgres } from '@keytrail/local';
import { createServiceDatabase, type Database, migrateDatabase, openDatabase } from '@keytrail/storage';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { wholeKeySet } from '../src/domain/key-set.ts';
import { deviceLogEntryMessage } from '../src/rpc/device-log-messages.ts';
import { deviceMessage } from '../src/rpc/device-messages.ts';
import { migrationsFolder } from '../src/service.ts';
import { readDeviceLists } from '../src/store/device-lists.ts';
import { readDeviceLogs } from '../src/store/device-log.ts';
import { listRevocations } from '../src/store/revocations.ts';
import { makeDevice, type TestDeviceOptions } from './device-keys.ts';

const logMigration = '20261123010000_device_logs';
const before = mkdtempSync(path.join(tmpdir(), 'keytrail-migrations-'));
let postgres: Awaited<ReturnType<typeof ensurePostgres>>;
let url: string;
let db: Database;
beforeAll(async () => {
  for (const name of readdirSync(migrationsFolder))
    if (name < logMigration) cpSync(path.join(migrationsFolder, name), path.join(before, name), { recursive: true });
  postgres = await ensurePostgres();
  const name = `identity_keys_${randomUUID().replaceAll('-', '')}`;
  const role = { name, role: name, password: randomBytes(9).toString('hex') };
  url = await createServiceDatabase({ adminUrl: postgres.url, ...role });
  db = openDatabase({ url, service: 'test', connections: 2, statementTimeoutMs: 20_000 });
});
afterAll(async () => {
  await db?.close();
  await postgres?.stop();
  rmSync(before, { recursive: true });
});

/** Writes a device as builds before the log did. */
async function writeDevice(version: number, options: TestDeviceOptions, revokedAfter?: string) {
  const { device, registration } = makeDevice({ ...options, oneTime: 0, kem: 0 });
  const { certificate, signedPrekey, lastResortPrekey } = wholeKeySet(registration);
  const certifiedAt = new Date(
    Number(certificate.certifiedAt?.seconds ?? 0n) * 1000 + (certificate.certifiedAt?.nanos ?? 0) / 1e6,
  );
  await db.pool.query(
    `WITH list AS (
       INSERT INTO users (user_id, root_key, device_list_version) VALUES ($1, $2, 1)
       ON CONFLICT (user_id) DO UPDATE SET device_list_version = $3
     ), device AS (
       INSERT INTO devices (user_id, device_id, suite, identity_key, signing_key, certificate_root_key, certificate_signature, certified_at,
                            current_signed_prekey_id, current_last_resort_prekey_id, registered_keys_digest, added_in_version, writer_build,
                            created_trace_id, revoked_at)
       VALUES ($1, $4, 1, $5, $6, $2, $7, $8, $9, $12, sha256($2), $3, 'test', '', now() + $15::interval) RETURNING device_number
     ), signed AS (
       INSERT INTO signed_prekeys (device_number, key_id, public_key, signature) SELECT device_number, $9, $10, $11 FROM device
     ), pool AS (
       INSERT INTO one_time_prekeys (device_number, key_id, public_key) SELECT device_number, 1, $10 FROM device
     )
     INSERT INTO last_resort_prekeys (device_number, key_id, public_key, signature) SELECT device_number, $12, $13, $14 FROM device`,
    [
      options.userId,
      certificate.rootKey,
      version,
      options.deviceId,
      registration.identityKey,
      registration.signingKey,
      certificate.signature,
      certifiedAt,
      signedPrekey.keyId,
      signedPrekey.publicKey,
      signedPrekey.signature,
      lastResortPrekey.keyId,
      lastResortPrekey.publicKey,
      lastResortPrekey.signature,
      revokedAfter,
    ],
  );
  await db.pool.query(
    `INSERT INTO unclaimed_one_time_prekeys SELECT device_number, 1, 1 FROM devices WHERE user_id = $1 AND device_id = $2`,
    [options.userId, options.deviceId],
  );
  return device;
}

test('devices from before the log get entries that clients verify, in the order in which they were registered', async () => {
  await migrateDatabase({ url, migrations: before });
  const users = ['ann', 'bob', 'ann:2'];
  for (const userId of users) {
    const { rootKey } = await writeDevice(1, { userId, deviceId: 'z' }, userId === 'ann' ? '2 hours' : undefined);
    await writeDevice(2, { userId, deviceId: 'a', rootKey }, userId === 'bob' ? '0' : undefined);
    await writeDevice(3, { userId, deviceId: 'm', rootKey }, userId === 'ann' ? '1 hour' : undefined);
  }
  await migrateDatabase({ url, migrations: migrationsFolder });

  const told: Record<string, [string, number][]> = {};
  for (const userId of users) {
    const rows = await readDeviceLogs(db, [{ userId, afterVersion: 0n }], 100);
    const entries = rows
      .flatMap((row) => deviceLogEntryMessage(row) ?? [])
      .map((entry) => create(DeviceLogEntrySchema, entry));
    told[userId] = entries.map(({ deviceId, kind }) => [deviceId, kind]);
    const [first, ...rest] = await readDeviceLists(db, { userIds: [userId], includeRevoked: true, limit: 10 });
    if (!first) throw new Error('no list');
    const list = create(DeviceListSchema, {
      userId,
      version: first.device_list_version ?? 0n,
      rootKey: first.root_key ?? new Uint8Array(),
      logHead: first.log_head ?? new Uint8Array(),
      devices: [first, ...rest].map((row) => deviceMessage(userId, row)),
    });
    compareDeviceList(verifyDeviceLog(nodePrimitives, emptyDeviceLog(userId), entries), list);
  }
  const added = [
    ['z', 1],
    ['a', 1],
    ['m', 1],
  ];
  expect(told).toEqual({
    ann: [...added, ['m', 2], ['z', 2]],
    bob: [...added, ['a', 2]],
    'ann:2': added,
  });
  const revocations = await listRevocations(db, 0n, 10);
  expect(revocations.map(({ userId, deviceId }) => [userId, deviceId])).toEqual([
    ['ann', 'm'],
    ['ann', 'z'],
    ['bob', 'a'],
  ]);
  const { rows } = await db.pool.query(
    `SELECT count(*)::integer AS pooled FROM unclaimed_one_time_prekeys p JOIN devices d USING (device_number) WHERE d.revoked_at IS NOT NULL`,
  );
  expect(rows).toEqual([{ pooled: 0 }]);
});
