import pg from 'pg';

/**
 * What a hostile database can do: the one device of `from` becomes a device of `to`, with an entry of the log that names `to`'s root key and
 * cannot be signed by it. `url` is the database of identity-keys.
 */
export async function forgeDevice(url: string, { from, to }: { from: string; to: string }): Promise<void> {
  const database = new pg.Client({ connectionString: url });
  await database.connect();
  try {
    await database.query(
      `INSERT INTO device_log (user_id, version, kind, previous_hash, recorded_at, root_key, device_id, identity_key, signing_key,
                               certified_at, certificate_signature)
       SELECT u.user_id, u.device_list_version + 1, 1, u.log_head, d.added_at, u.root_key, d.device_id, d.identity_key, d.signing_key,
              d.certified_at, d.certificate_signature
         FROM users u, devices d WHERE u.user_id = $2 AND d.user_id = $1`,
      [from, to],
    );
    await database.query(
      `UPDATE devices SET user_id = $2, certificate_root_key = listed.root_key, added_in_version = listed.device_list_version,
                          certified_in_version = listed.device_list_version
         FROM users listed WHERE devices.user_id = $1 AND listed.user_id = $2`,
      [from, to],
    );
  } finally {
    await database.end();
  }
}
