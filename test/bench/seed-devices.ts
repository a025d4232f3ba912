import type { Client } from 'pg';

export interface SeededDevice {
  readonly userId: string;
  readonly deviceId: string;
}

export const devicesPerUser = 3;

/**
 * Devices with whole key sets of random bytes, three for each user: `bench-<name>-1` … with `device-1` to `device-3`; `prekeys` unclaimed
 * one-time prekeys of each kind for each.
 */
export async function seedDevices(sql: Client, name: string, count: number, prekeys: number): Promise<SeededDevice[]> {
  const users = `bench-${name}-`;
  await sql.query(`CREATE OR REPLACE FUNCTION pg_temp.bytes(length integer) RETURNS bytea LANGUAGE sql VOLATILE AS $$
    SELECT substr(decode(string_agg(md5(random()::text), ''), 'hex'), 1, length) FROM generate_series(0, length / 16) $$`);
  await sql.query('BEGIN');
  const ofUsers = Math.ceil(count / devicesPerUser);
  await sql.query(
    `WITH named AS (
       INSERT INTO users (user_id, root_key, device_list_version)
       SELECT $2 || u, pg_temp.bytes(32), 0 FROM generate_series(1, $1::integer) AS u RETURNING user_id, root_key
     )
     INSERT INTO root_keys (user_id, root_key, since_version) SELECT user_id, root_key, 1 FROM named`,
    [ofUsers, users],
  );
  for (let version = 1; version <= devicesPerUser; version++)
    await sql.query(
      `INSERT INTO device_log (user_id, version, previous_hash, recorded_at, kind, root_key, device_id, identity_key, signing_key,
         certified_at, certificate_signature)
       SELECT user_id, $2::bigint, coalesce(log_head, decode(repeat('00', 32), 'hex')), date_trunc('milliseconds', now()), 1, root_key,
         'device-' || $2::bigint, pg_temp.bytes(32), pg_temp.bytes(32), now(), pg_temp.bytes(64)
       FROM users WHERE starts_with(user_id, $3) ORDER BY user_id LIMIT $1`,
      [Math.max(0, count - (version - 1) * ofUsers), version, users],
    );
  await sql.query(
    `INSERT INTO devices (user_id, device_id, suite, identity_key, signing_key, certificate_root_key, certificate_signature, certified_at,
       current_signed_prekey_id, current_last_resort_prekey_id, registered_keys_digest, added_in_version, certified_in_version, added_at,
       writer_build, created_trace_id)
     SELECT user_id, device_id, 1, identity_key, signing_key, root_key, certificate_signature, certified_at,
       1, 1, pg_temp.bytes(32), version, version, recorded_at, 'bench', ''
     FROM device_log WHERE starts_with(user_id, $1) ORDER BY version, user_id`,
    [users],
  );
  await sql.query(
    `INSERT INTO signed_prekeys (device_number, key_id, public_key, signature)
     SELECT device_number, 1, pg_temp.bytes(32), pg_temp.bytes(64) FROM devices WHERE starts_with(user_id, $1)`,
    [users],
  );
  await sql.query(
    `INSERT INTO last_resort_prekeys (device_number, key_id, public_key, signature)
     SELECT device_number, 1, pg_temp.bytes(1184), pg_temp.bytes(64) FROM devices WHERE starts_with(user_id, $1)`,
    [users],
  );
  await sql.query('COMMIT');
  await addPrekeys(sql, name, prekeys);
  const { rows } = await sql.query<SeededDevice>(
    `SELECT user_id AS "userId", device_id AS "deviceId" FROM devices WHERE starts_with(user_id, $1) ORDER BY md5(user_id || device_id)`,
    [users],
  );
  return rows;
}

/** So many registered devices of different users, to call with. */
export async function seedCallers(sql: Client, name: string, count: number): Promise<SeededDevice[]> {
  const devices = await seedDevices(sql, name, count * devicesPerUser, 0);
  return devices.filter(({ deviceId }) => deviceId === 'device-1');
}

/** Adds `prekeys` unclaimed prekeys of each kind to each device of that name; the ids go on from where they were. */
export async function addPrekeys(sql: Client, name: string, prekeys: number): Promise<void> {
  if (prekeys === 0) return;
  const users = `bench-${name}-`;
  await sql.query('BEGIN');
  await sql.query(
    `CREATE TEMPORARY TABLE added ON COMMIT DROP AS
     SELECT device_number, one_time_prekeys_added AS before FROM devices WHERE starts_with(user_id, $1)`,
    [users],
  );
  // The keys of a pool differ, but are the same for all devices, and repeat 16 bytes: random ones of each device's own would take minutes.
  // Rows lie as uploads leave them, device by device.
  await sql.query(
    `INSERT INTO one_time_prekeys (device_number, key_id, public_key)
     SELECT device_number, before + k, key FROM added,
       (SELECT k, decode(repeat(md5(random()::text), 2), 'hex') AS key FROM generate_series(1, $1::integer) AS k OFFSET 0) AS keys
     ORDER BY device_number, k`,
    [prekeys],
  );
  await sql.query(
    `INSERT INTO one_time_kem_prekeys (device_number, key_id, public_key, signature)
     SELECT device_number, before + k + 1, decode(repeat(key, 74), 'hex'), decode(repeat(key, 4), 'hex') FROM (
       SELECT * FROM added, (SELECT k, md5(random()::text) AS key FROM generate_series(1, $1::integer) AS k OFFSET 0) AS keys
        ORDER BY device_number, k OFFSET 0) AS sorted`,
    [prekeys],
  );
  await sql.query(
    `INSERT INTO unclaimed_one_time_prekeys (device_number, seq, key_id)
     SELECT device_number, before + k, before + k FROM added, generate_series(1, $1::integer) AS k ORDER BY device_number, k`,
    [prekeys],
  );
  await sql.query(
    `INSERT INTO unclaimed_one_time_kem_prekeys (device_number, seq, key_id)
     SELECT device_number, before + k, before + k + 1 FROM added, generate_series(1, $1::integer) AS k ORDER BY device_number, k`,
    [prekeys],
  );
  await sql.query(
    `UPDATE devices d SET one_time_prekeys_added = before + $1, kem_prekeys_added = before + $1 FROM added a WHERE d.device_number = a.device_number`,
    [prekeys],
  );
  await sql.query('COMMIT');
  await sql.query(
    'VACUUM ANALYZE users, devices, signed_prekeys, last_resort_prekeys, one_time_prekeys, one_time_kem_prekeys, unclaimed_one_time_prekeys, unclaimed_one_time_kem_prekeys',
  );
}
