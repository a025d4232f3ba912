import { isCheckViolation, isForeignKeyViolation, isNotNullViolation, isUniqueViolation } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

let service: IdentityKeysUnderTest;
let userId: string;
let device: bigint;
beforeAll(async () => {
  service = await startIdentityKeys();
  userId = newUser();
  await service.register({ userId, deviceId: 'phone' });
  device = (await run('SELECT device_number FROM devices WHERE user_id = $1', [userId]))[0]?.device_number as bigint;
});
afterAll(() => service?.stop());

async function run(sql: string, values: unknown[] = []) {
  return (await service.db.pool.query<Record<string, unknown>>(sql, values)).rows;
}

async function errorOf(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => undefined,
    (error: unknown) => error,
  );
}

const insert = (root: string, changes: Record<string, string> = {}) => {
  const columns: Record<string, string> = {
    user_id: '$1',
    device_id: "'tablet'",
    suite: '1',
    identity_key: "decode(repeat('01', 32), 'hex')",
    signing_key: "decode(repeat('02', 32), 'hex')",
    certificate_root_key: root,
    certificate_signature: "decode(repeat('03', 64), 'hex')",
    certified_at: 'now()',
    current_signed_prekey_id: '1',
    current_last_resort_prekey_id: '1',
    registered_keys_digest: "decode(repeat('04', 32), 'hex')",
    added_in_version: '2',
    certified_in_version: '2',
    writer_build: "'test'",
    created_trace_id: "''",
    ...changes,
  };
  return `INSERT INTO devices (${Object.keys(columns)}) VALUES (${Object.values(columns)})`;
};
const rootOfUser = '(SELECT root_key FROM users WHERE user_id = $1)';

/** The device as `insert` has it, after the entry of the log that adds it. */
async function addDevice(root = rootOfUser, changes: Record<string, string> = {}) {
  const tablet = insert(root, { added_at: '(SELECT recorded_at FROM entry)', ...changes });
  return run(
    `WITH entry AS (
  INSERT INTO device_log (user_id, version, previous_hash, recorded_at, kind, root_key, device_id, identity_key, signing_key, certified_at,
                          certificate_signature)
  SELECT user_id, 2, log_head, date_trunc('milliseconds', now()), 1, root_key, 'tablet', decode(repeat('01', 32), 'hex'),
         decode(repeat('02', 32), 'hex'), now(), decode(repeat('03', 64), 'hex') FROM users WHERE user_id = $1 RETURNING recorded_at
) ${tablet}`,
    [userId],
  );
}

describe('by straight SQL, the database refuses', () => {
  test('a device without a signed prekey and a last-resort prekey, when it is committed', async () => {
    expect(isForeignKeyViolation(await errorOf(addDevice()), 'devices_have_a_signed_prekey')).toBe(true);
  });

  test.for([
    'current_signed_prekey_id',
    'current_last_resort_prekey_id',
    'identity_key',
    'signing_key',
    'certificate_signature',
    'certificate_root_key',
  ])('a device with no %s', async (column) => {
    const made = await errorOf(run(insert(rootOfUser, { [column]: 'NULL' }), [userId]));
    const changed = await errorOf(run(`UPDATE devices SET ${column} = NULL WHERE device_number = $1`, [device]));
    expect([isNotNullViolation(made, column), isNotNullViolation(changed, column)]).toEqual([true, true]);
  });

  test.for(['signed_prekeys', 'last_resort_prekeys'])('to take the current key out of %s', async (table) => {
    expect(isForeignKeyViolation(await errorOf(run(`DELETE FROM ${table} WHERE device_number = $1`, [device])))).toBe(
      true,
    );
  });

  test('a device that points to a signed prekey it does not have', async () => {
    const error = await errorOf(
      run('UPDATE devices SET current_signed_prekey_id = 9 WHERE device_number = $1', [device]),
    );
    expect(isForeignKeyViolation(error, 'devices_have_a_signed_prekey')).toBe(true);
  });

  test('a device that points to a one-time prekey as its last resort', async () => {
    const error = await errorOf(
      run('UPDATE devices SET current_last_resort_prekey_id = 2 WHERE device_number = $1', [device]),
    );
    expect(isForeignKeyViolation(error, 'devices_have_a_last_resort_prekey')).toBe(true);
  });

  test('a device under another root key than its user’s', async () => {
    const change = `WITH key AS (
  INSERT INTO root_keys SELECT user_id, decode(repeat('09', 32), 'hex'), 2 FROM users WHERE user_id = $1 RETURNING user_id, root_key
)
INSERT INTO device_log (user_id, version, previous_hash, recorded_at, kind, root_key, previous_root_key, previous_signature, new_signature)
SELECT u.user_id, 2, u.log_head, date_trunc('milliseconds', now()), 3, key.root_key, u.root_key, '', decode(repeat('00', 64), 'hex')
  FROM key JOIN users u USING (user_id)`;
    const error = await errorOf(run(change, [userId]));
    expect(isForeignKeyViolation(error, 'devices_certified_by_root_key')).toBe(true);
  });

  test('two devices in one version of the device list', async () => {
    const error = await errorOf(addDevice(rootOfUser, { added_in_version: '1' }));
    expect(isUniqueViolation(error, 'devices_one_per_version')).toBe(true);
  });

  test.for([
    ['users', 'root_key'],
    ['devices', 'identity_key'],
    ['devices', 'signing_key'],
    ['devices', 'certificate_signature'],
    ['signed_prekeys', 'public_key'],
    ['signed_prekeys', 'signature'],
    ['last_resort_prekeys', 'public_key'],
    ['last_resort_prekeys', 'signature'],
    ['one_time_prekeys', 'public_key'],
    ['one_time_kem_prekeys', 'public_key'],
    ['one_time_kem_prekeys', 'signature'],
  ] as const)('a %s.%s of a wrong length', async ([table, column]) => {
    for (const longer of [`substr(${column}, 2)`, `${column} || '\\x00'::bytea`])
      expect(isCheckViolation(await errorOf(run(`UPDATE ${table} SET ${column} = ${longer}`)))).toBe(true);
  });

  test('an id of a prekey that was used before, claimed or not', async () => {
    for (const table of ['one_time_prekeys', 'one_time_kem_prekeys', 'signed_prekeys', 'last_resort_prekeys']) {
      const error = await errorOf(
        run(`INSERT INTO ${table} SELECT * FROM ${table} WHERE device_number = $1`, [device]),
      );
      expect(isUniqueViolation(error, `${table}_pkey`)).toBe(true);
    }
  });

  test('a claim that passed over a prekey which another claim held', async () => {
    const claim = `INSERT INTO claims VALUES ('test', gen_random_uuid(), decode(repeat('01', 32), 'hex'), '{1}', '{1}', '{1}', '{1}', '{1}', now(), true)`;
    expect(isCheckViolation(await errorOf(run(claim)), 'claims_never_pass_over_a_locked_prekey')).toBe(true);
  });
});
