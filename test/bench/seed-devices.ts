import type { Client } from 'pg';

export interface SeededDevice {
  readonly userId: string;
  readonly deviceId: string;
}

const devicesPerUser = 3;

/** Devices with whole key sets of random bytes and `prekeys` unclaimed one-time prekeys of each kind. */
export async function seedDevices(sql: Client, count: number, prekeys: number): Promise<SeededDevice[]> {
  await sql.query(`CREATE FUNCTION pg_temp.bytes(length integer) RETURNS bytea LANGUAGE sql VOLATILE AS $$
    SELECT substr(decode(string_agg(md5(random()::text), ''), 'hex'), 1, length) FROM generate_series(0, length / 16) $$`);
  await sql.query('BEGIN');
  await sql.query(
    `INSERT INTO users (user_id, root_key, device_list_version)
     SELECT 'bench-user-' || u, pg_temp.bytes(32), $2 FROM generate_series(1, ceil($1::numeric / $2)::integer) AS u`,
    [count, devicesPerUser],
  );
  await sql.query(
    `INSERT INTO devices (user_id, device_id, suite, identity_key, signing_key, certificate_root_key, certificate_signature, certified_at,
       current_signed_prekey_id, current_last_resort_prekey_id, one_time_prekeys_added, kem_prekeys_added, registered_keys_digest,
       added_in_version, writer_build, created_trace_id)
     SELECT u.user_id, 'device-' || v, 1, pg_temp.bytes(32), pg_temp.bytes(32), u.root_key, pg_temp.bytes(64), now(),
       1, 1, $2, $2, pg_temp.bytes(32), v, 'bench', ''
     FROM users u, generate_series(1, $3::integer) AS v WHERE u.user_id LIKE 'bench-user-%' ORDER BY v, u.user_id LIMIT $1`,
    [count, prekeys, devicesPerUser],
  );
  await sql.query(
    `CREATE TEMPORARY TABLE seeded ON COMMIT DROP AS SELECT device_number FROM devices WHERE user_id LIKE 'bench-user-%'`,
  );
  await sql.query(
    `INSERT INTO signed_prekeys (device_number, key_id, public_key, signature)
     SELECT device_number, 1, pg_temp.bytes(32), pg_temp.bytes(64) FROM seeded`,
  );
  await sql.query(
    `INSERT INTO last_resort_prekeys (device_number, key_id, public_key, signature)
     SELECT device_number, 1, pg_temp.bytes(1184), pg_temp.bytes(64) FROM seeded`,
  );
  // The public keys of a pool are the same for all devices: making each of its own would take a minute.
  await sql.query(
    `INSERT INTO one_time_prekeys (device_number, key_id, public_key)
     SELECT device_number, k, key FROM seeded, (SELECT k, pg_temp.bytes(32) AS key FROM generate_series(1, $1::integer) AS k OFFSET 0) AS keys`,
    [prekeys],
  );
  await sql.query(
    `INSERT INTO one_time_kem_prekeys (device_number, key_id, public_key, signature)
     SELECT device_number, k + 1, key, signature FROM seeded,
       (SELECT k, pg_temp.bytes(1184) AS key, pg_temp.bytes(64) AS signature FROM generate_series(1, $1::integer) AS k OFFSET 0) AS keys`,
    [prekeys],
  );
  await sql.query(
    `INSERT INTO unclaimed_one_time_prekeys (device_number, seq, key_id)
     SELECT device_number, k, k FROM seeded, generate_series(1, $1::integer) AS k`,
    [prekeys],
  );
  await sql.query(
    `INSERT INTO unclaimed_one_time_kem_prekeys (device_number, seq, key_id)
     SELECT device_number, k, k + 1 FROM seeded, generate_series(1, $1::integer) AS k`,
    [prekeys],
  );
  await sql.query('COMMIT');
  await sql.query(
    'VACUUM ANALYZE users, devices, signed_prekeys, last_resort_prekeys, one_time_prekeys, one_time_kem_prekeys, unclaimed_one_time_prekeys, unclaimed_one_time_kem_prekeys',
  );
  const { rows } = await sql.query<SeededDevice>(
    `SELECT user_id AS "userId", device_id AS "deviceId" FROM devices WHERE user_id LIKE 'bench-user-%' ORDER BY md5(user_id || device_id)`,
  );
  return rows;
}
