import { type Queryable, statement } from '@keytrail/storage';

/** A user as operators see it. */
export interface SeenUser {
  /** 0 for an unknown user. */
  readonly version: bigint;
  readonly rootKeyPresent: boolean;
  /** Null while the first root key is in use. */
  readonly rootKeyChangedAt: Date | null;
  readonly erasedAt: Date | null;
}

/** A device as operators see it: that keys are there, never which. */
export interface SeenDevice {
  readonly deviceId: string;
  readonly suite: number | null;
  readonly identityKey: boolean;
  readonly signingKey: boolean;
  readonly certificate: boolean;
  readonly signedPrekey: boolean;
  readonly lastResortPrekey: boolean;
  readonly oneTime: bigint;
  readonly kem: bigint;
  /** Of both kinds, so far. */
  readonly claimed: bigint;
  readonly signedPrekeyAddedAt: Date | null;
  readonly addedInVersion: bigint;
  readonly addedAt: Date;
  readonly revokedAt: Date | null;
  readonly revokedInVersion: bigint | null;
  readonly writerBuild: string;
  readonly traceId: string;
  /** Empty for an active device, or when unknown. */
  readonly revocationWriterBuild: string;
  readonly revocationTraceId: string;
}

const user = statement(
  'operator_user',
  `SELECT coalesce(u.device_list_version, 0) AS version, u.root_key IS NOT NULL AS "rootKeyPresent", l.recorded_at AS "rootKeyChangedAt",
     coalesce(u.erased_at, e.requested_at) AS "erasedAt"
   FROM (VALUES ($1::text)) AS asked (user_id)
   LEFT JOIN users u USING (user_id)
   LEFT JOIN LATERAL (SELECT recorded_at FROM device_log WHERE user_id = asked.user_id AND kind = 3 ORDER BY version DESC LIMIT 1) l ON true
   LEFT JOIN LATERAL (SELECT requested_at FROM erasures WHERE user_id = asked.user_id ORDER BY requested_at DESC LIMIT 1) e ON true`,
);

// What was added and is neither in a pool, retired, nor deleted with a revocation was claimed. Damaged rows do not count below nothing.
const devices = statement(
  'operator_devices',
  `SELECT d.device_id AS "deviceId", d.suite, d.identity_key IS NOT NULL AS "identityKey", d.signing_key IS NOT NULL AS "signingKey",
     num_nulls(d.certificate_root_key, d.certificate_signature, d.certified_at) = 0 AS certificate,
     s.public_key IS NOT NULL AND s.signature IS NOT NULL AS "signedPrekey",
     l.public_key IS NOT NULL AND l.signature IS NOT NULL AS "lastResortPrekey",
     o.unclaimed AS "oneTime", k.unclaimed AS kem,
     greatest(0, d.one_time_prekeys_added - d.one_time_prekeys_retired - o.unclaimed - coalesce(r.removed_one_time, 0))
       + greatest(0, d.kem_prekeys_added - d.kem_prekeys_retired - k.unclaimed - coalesce(r.removed_kem, 0)) AS claimed,
     s.added_at AS "signedPrekeyAddedAt", d.added_in_version AS "addedInVersion", d.added_at AS "addedAt", d.revoked_at AS "revokedAt",
     d.revoked_in_version AS "revokedInVersion", d.writer_build AS "writerBuild", d.created_trace_id AS "traceId",
     coalesce(d.revocation_writer_build, '') AS "revocationWriterBuild", coalesce(d.revocation_trace_id, '') AS "revocationTraceId"
   FROM devices d
   LEFT JOIN signed_prekeys s ON s.device_number = d.device_number AND s.key_id = d.current_signed_prekey_id
   LEFT JOIN last_resort_prekeys l ON l.device_number = d.device_number AND l.key_id = d.current_last_resort_prekey_id
   LEFT JOIN revocations r ON r.user_id = d.user_id AND r.device_id = d.device_id
   CROSS JOIN LATERAL (SELECT count(*) AS unclaimed FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number) o
   CROSS JOIN LATERAL (SELECT count(*) AS unclaimed FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number) k
   WHERE d.user_id = $1 ORDER BY d.added_in_version`,
);

const page = statement('operator_user_ids', 'SELECT user_id FROM users WHERE user_id > $1 ORDER BY user_id LIMIT $2');

export async function readSeenUser(db: Queryable, userId: string): Promise<SeenUser> {
  const [row] = await db.query<SeenUser>(user, [userId]);
  if (!row) throw new Error('a user is one row, known or not');
  return row;
}

/** All that the user ever had, oldest first. */
export function listSeenDevices(db: Queryable, userId: string): Promise<SeenDevice[]> {
  return db.query<SeenDevice>(devices, [userId]);
}

/** Ids of users after one of them, in their order. */
export async function listUserIds(db: Queryable, after: string, most: number): Promise<string[]> {
  return (await db.query<{ user_id: string }>(page, [after, most])).map(({ user_id }) => user_id);
}
