import { isCheckViolation, isForeignKeyViolation, isUniqueViolation } from '@keytrail/storage';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

let service: IdentityKeysUnderTest;
let userId: string;
beforeAll(async () => {
  service = await startIdentityKeys();
});
beforeEach(async () => {
  userId = newUser();
  const { device } = await service.register({ userId, deviceId: 'phone', oneTime: 1, kem: 1 });
  await service.register({ userId, deviceId: 'laptop', rootKey: device.rootKey, oneTime: 1, kem: 1 });
  await service.revoke(userId, 'laptop');
});
afterAll(() => service?.stop());

/** The error of the statements in one transaction, at the latest when it is committed; undefined when the database takes them. */
async function errorOf(...statements: string[]): Promise<unknown> {
  const connection = await service.db.pool.connect();
  try {
    await connection.query('BEGIN');
    for (const sql of statements) await connection.query(sql, sql.includes('$1') ? [userId] : []);
    await connection.query('COMMIT');
    return undefined;
  } catch (error) {
    await connection.query('ROLLBACK');
    return error;
  } finally {
    connection.release();
  }
}

const bytes = (fill: string, length: number) => `decode(repeat('${fill}', ${length}), 'hex')`;

/** An entry of version 4 that the phone was certified again, but for the changes. */
function append(changes: Record<string, string> = {}) {
  const columns: Record<string, string> = {
    user_id: 'u.user_id',
    version: '4',
    kind: '4',
    previous_hash: 'u.log_head',
    recorded_at: "date_trunc('milliseconds', now())",
    root_key: 'u.root_key',
    device_id: 'd.device_id',
    identity_key: 'd.identity_key',
    signing_key: 'd.signing_key',
    certified_at: 'd.certified_at',
    certificate_signature: 'd.certificate_signature',
    ...changes,
  };
  return `INSERT INTO device_log (${Object.keys(columns)}) SELECT ${Object.values(columns)}
            FROM users u JOIN devices d USING (user_id) WHERE user_id = $1 AND device_id = 'phone'`;
}
const noDevice = {
  device_id: 'NULL',
  identity_key: 'NULL',
  signing_key: 'NULL',
  certified_at: 'NULL',
  certificate_signature: 'NULL',
};
const noCertificate = { certified_at: 'NULL', certificate_signature: 'NULL' };
const rootKeySince = (version: number) =>
  `INSERT INTO root_keys SELECT user_id, ${bytes('09', 32)}, ${version} FROM users WHERE user_id = $1`;
const newRootKey = rootKeySince(4);
const change = {
  ...noDevice,
  kind: '3',
  root_key: bytes('09', 32),
  previous_root_key: 'u.root_key',
  previous_signature: "''",
  new_signature: bytes('01', 64),
};

describe('by straight SQL, the device log', () => {
  test('takes an entry that follows the newest one, and the user’s row follows it', async () => {
    expect(await errorOf(append())).toBeUndefined();
    const { rows } = await service.db.pool.query(
      `SELECT u.device_list_version, u.log_head = l.entry_hash AS head FROM users u JOIN device_log l USING (user_id)
        WHERE user_id = $1 AND l.version = 4`,
      [userId],
    );
    expect(rows).toEqual([{ device_list_version: 4n, head: true }]);
  });

  const refused: Record<string, [sql: () => string[], is: (error: unknown, name: string) => boolean, name: string]> = {
    'an entry that leaves a version out': [
      () => [append({ version: '5', previous_hash: `${bytes('00', 31)} || '\\x01'` })],
      isForeignKeyViolation,
      'device_log_chained',
    ],
    'an entry that names another hash than that of the one before': [
      () => [append({ previous_hash: bytes('07', 32) })],
      isForeignKeyViolation,
      'device_log_chained',
    ],
    'an entry under another root key than the one before, without a change': [
      () => [newRootKey, append({ root_key: bytes('09', 32) })],
      isForeignKeyViolation,
      'device_log_chained',
    ],
    'a change from a root key that the user does not have': [
      () => [newRootKey, append({ ...change, previous_root_key: bytes('08', 32) })],
      isForeignKeyViolation,
      'device_log_chained',
    ],
    'a root key that is not in the history': [
      () => [append(change)],
      isForeignKeyViolation,
      'device_log_root_key_of_user',
    ],
    'a second entry of a version': [
      () => [
        append({
          version: '3',
          previous_hash: '(SELECT entry_hash FROM device_log l WHERE l.user_id = u.user_id AND version = 2)',
        }),
      ],
      isUniqueViolation,
      'device_log_pkey',
    ],
    'an entry after the zeros that begin a log': [
      () => [append({ previous_hash: bytes('00', 32) })],
      isCheckViolation,
      'device_log_begins_with_zeros',
    ],
    'a log that begins without a device': [
      () => [append({ ...change, version: '1', previous_hash: bytes('00', 32) })],
      isCheckViolation,
      'device_log_begins_with_a_device',
    ],
    'a time finer than it is hashed': [
      () => [append({ recorded_at: "date_trunc('milliseconds', now()) + interval '1 microsecond'" })],
      isCheckViolation,
      'device_log_whole_milliseconds',
    ],
    'an entry of a device without its keys': [
      () => [append({ identity_key: 'NULL' })],
      isCheckViolation,
      'device_log_names_the_device',
    ],
    'a certification without its signature': [
      () => [append({ certificate_signature: 'NULL' })],
      isCheckViolation,
      'device_log_has_the_certificate',
    ],
    'a revocation that says nothing of by whom': [
      () => [append({ ...noCertificate, kind: '2' })],
      isCheckViolation,
      'device_log_tells_who_revoked',
    ],
    'a revocation by a device without the root key’s signature': [
      () => [append({ ...noCertificate, kind: '2', revoked_by: '1', revoking_device_id: "'phone'" })],
      isCheckViolation,
      'device_log_tells_who_revoked',
    ],
    'a change of the root key without the new one’s signature': [
      () => [newRootKey, append({ ...change, new_signature: 'NULL' })],
      isCheckViolation,
      'device_log_has_the_root_key_change',
    ],
    'to change an entry': [
      () => [`UPDATE device_log SET recorded_at = recorded_at - interval '1 hour' WHERE user_id = $1`],
      isCheckViolation,
      'device_log_only_grows',
    ],
    'to delete an entry': [
      () => ['DELETE FROM device_log WHERE user_id = $1 AND version = 3'],
      isCheckViolation,
      'device_log_only_grows',
    ],
    'a user’s row that goes back to an older entry': [
      () => [
        `UPDATE users u SET device_list_version = 2, log_head = l.entry_hash FROM device_log l
          WHERE u.user_id = $1 AND l.user_id = u.user_id AND l.version = 2`,
      ],
      isCheckViolation,
      'users_name_the_newest_entry',
    ],
    'a user’s row that names no entry': [
      () => [`UPDATE users SET device_list_version = 9, log_head = ${bytes('07', 32)} WHERE user_id = $1`],
      isForeignKeyViolation,
      'users_name_an_entry',
    ],
    'a user’s row with a root key of which the log does not tell': [
      () => [
        rootKeySince(3),
        'SET CONSTRAINTS users_name_an_entry IMMEDIATE',
        `UPDATE users SET root_key = ${bytes('09', 32)} WHERE user_id = $1`,
      ],
      isForeignKeyViolation,
      'users_name_an_entry',
    ],
    'a user’s row with a list and no head': [
      () => ['UPDATE users SET log_head = NULL WHERE user_id = $1'],
      isCheckViolation,
      'users_have_a_log_head',
    ],
    'a root key that the user had before': [
      () => ['INSERT INTO root_keys SELECT user_id, root_key, 4 FROM users WHERE user_id = $1'],
      isUniqueViolation,
      'root_keys_never_come_back',
    ],
    'to forget a root key': [
      () => ['DELETE FROM root_keys WHERE user_id = $1'],
      isCheckViolation,
      'root_keys_only_grow',
    ],
    'a root key since an entry that is not there': [
      () => [newRootKey],
      isForeignKeyViolation,
      'root_keys_since_an_entry',
    ],
    'a device with another certificate than the log has': [
      () => [
        `UPDATE devices SET certificate_signature = ${bytes('05', 64)} WHERE user_id = $1 AND device_id = 'phone'`,
      ],
      isForeignKeyViolation,
      'devices_certified_by_an_entry',
    ],
    'a device with another identity key than the log has': [
      () => [`UPDATE devices SET identity_key = ${bytes('05', 32)} WHERE user_id = $1 AND device_id = 'phone'`],
      isForeignKeyViolation,
      'devices_certified_by_an_entry',
    ],
    'a device that was added at another time than the log says': [
      () => [`UPDATE devices SET added_at = added_at - interval '1 hour' WHERE user_id = $1 AND device_id = 'phone'`],
      isForeignKeyViolation,
      'devices_added_by_an_entry',
    ],
    'a revocation without an entry': [
      () => [`UPDATE devices SET revoked_at = now() WHERE user_id = $1 AND device_id = 'phone'`],
      isCheckViolation,
      'devices_revoked_in_a_version',
    ],
    'a revocation with the entry of another device': [
      () => [
        `UPDATE devices SET revoked_at = now(), revoked_in_version = 3 WHERE user_id = $1 AND device_id = 'phone'`,
      ],
      isForeignKeyViolation,
      'devices_revoked_by_an_entry',
    ],
    'a revocation without a number': [
      () => [
        append({ ...noCertificate, kind: '2', revoked_by: '2' }),
        `UPDATE devices d SET revoked_at = l.recorded_at, revoked_in_version = 4 FROM device_log l
          WHERE d.user_id = $1 AND d.device_id = 'phone' AND l.user_id = d.user_id AND l.version = 4`,
      ],
      isForeignKeyViolation,
      'devices_revoked_with_a_number',
    ],
    'to say who revoked a device that is not revoked': [
      () => [`UPDATE devices SET revocation_writer_build = 'a-build' WHERE user_id = $1 AND device_id = 'phone'`],
      isCheckViolation,
      'devices_revocation_of_the_revoked',
    ],
    'a revoked device that comes back': [
      () => [
        `UPDATE devices SET revoked_at = NULL, revoked_in_version = NULL WHERE user_id = $1 AND device_id = 'laptop'`,
      ],
      isCheckViolation,
      'devices_stay_revoked',
    ],
    'to forget a revocation': [
      () => ['DELETE FROM revocations WHERE user_id = $1'],
      isCheckViolation,
      'revocations_only_grow',
    ],
    'a recovery of another root key': [
      () => [
        `INSERT INTO recoveries SELECT user_id, ${bytes('09', 32)}, ${bytes('01', 48)}, date_trunc('milliseconds', now()) FROM users WHERE user_id = $1`,
      ],
      isForeignKeyViolation,
      'recoveries_of_the_present_root_key',
    ],
    'to change the audit log': [
      () => [`UPDATE audit_log SET note = 'another' WHERE user_id = $1`],
      isCheckViolation,
      'audit_log_only_grows',
    ],
    'to delete from the audit log, even of an erased user': [
      () => ['UPDATE users SET erased_at = now() WHERE user_id = $1', 'DELETE FROM audit_log WHERE user_id = $1'],
      isCheckViolation,
      'audit_log_only_grows',
    ],
  };
  test.for(Object.entries(refused))('refuses %s', async ([, [sql, is, name]]) => {
    const error = await errorOf(...sql());
    expect(error).toBeDefined();
    expect([is(error, name), (error as { constraint?: string }).constraint]).toEqual([true, name]);
  });

  test('lets the entries, root keys and revocations of an erased user go, when nothing names them any more', async () => {
    const ofDevices = 'device_number IN (SELECT device_number FROM devices WHERE user_id = $1)';
    const error = await errorOf(
      'UPDATE users SET erased_at = now() WHERE user_id = $1',
      `DELETE FROM unclaimed_one_time_prekeys WHERE ${ofDevices}`,
      `DELETE FROM unclaimed_one_time_kem_prekeys WHERE ${ofDevices}`,
      `DELETE FROM one_time_prekeys WHERE ${ofDevices}`,
      `DELETE FROM one_time_kem_prekeys WHERE ${ofDevices}`,
      `WITH d AS (DELETE FROM devices WHERE user_id = $1 RETURNING device_number),
            s AS (DELETE FROM signed_prekeys WHERE device_number IN (SELECT device_number FROM d))
       DELETE FROM last_resort_prekeys WHERE device_number IN (SELECT device_number FROM d)`,
      'UPDATE users SET device_list_version = 0, log_head = NULL WHERE user_id = $1',
      `WITH l AS (DELETE FROM device_log WHERE user_id = $1) DELETE FROM root_keys WHERE user_id = $1`,
      'DELETE FROM revocations WHERE user_id = $1',
    );
    expect(error).toBeUndefined();
    const { rows } = await service.db.pool.query('SELECT FROM device_log WHERE user_id = $1', [userId]);
    expect(rows).toEqual([]);
  });
});
