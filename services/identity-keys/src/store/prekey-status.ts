import type { Ref } from '@keytrail/crypto';
import { type Queryable, statement } from '@keytrail/storage';
import type { PrekeyLimits } from '../domain/prekey-limits.ts';

/** A device, its current prekeys, its levels, and what is due by the database's clock. */
export interface PrekeyStatusRow {
  readonly device_number: bigint;
  readonly revoked_at: Date | null;
  readonly identity_key: Buffer;
  readonly signing_key: Buffer;
  readonly certificate_signature: Buffer;
  readonly one_time: bigint;
  readonly kem: bigint;
  readonly one_time_retired: bigint;
  readonly kem_retired: bigint;
  readonly one_time_over_aged: bigint;
  readonly kem_over_aged: bigint;
  readonly signed_prekey_id: bigint;
  readonly signed_prekey_added_at: Date;
  readonly signed_prekey_due: boolean;
  /** SHA-256 of the public key. */
  readonly signed_prekey_hash: Buffer;
  readonly last_resort_prekey_id: bigint;
  readonly last_resort_prekey_added_at: Date;
  readonly last_resort_prekey_due: boolean;
  readonly last_resort_prekey_hash: Buffer;
  /** The database went back in time since the device was registered: uploads of it may be gone that were claimed from. */
  readonly uploads_lost: boolean;
}

// A pool is bounded (KEYTRAIL_MAX_PREKEYS_PER_POOL): counting it reads a few pages. $3 to $5: greatest ages in ms.
const read = statement(
  'prekey_status_read',
  `SELECT d.device_number, d.revoked_at, d.identity_key, d.signing_key, d.certificate_signature,
       o.unclaimed AS one_time, k.unclaimed AS kem, o.over_aged AS one_time_over_aged, k.over_aged AS kem_over_aged,
       d.one_time_prekeys_retired AS one_time_retired, d.kem_prekeys_retired AS kem_retired,
       s.key_id AS signed_prekey_id, s.added_at AS signed_prekey_added_at, sha256(s.public_key) AS signed_prekey_hash,
       s.added_at < now() - $3 * interval '1 millisecond' AS signed_prekey_due,
       l.key_id AS last_resort_prekey_id, l.added_at AS last_resort_prekey_added_at, sha256(l.public_key) AS last_resort_prekey_hash,
       l.added_at < now() - $4 * interval '1 millisecond' OR l.handed_out_at IS NOT NULL AND k.unclaimed > 0 AS last_resort_prekey_due,
       EXISTS (SELECT FROM database_restores r WHERE r.noticed_at >= d.added_at) AS uploads_lost
  FROM devices d
  JOIN signed_prekeys s ON s.device_number = d.device_number AND s.key_id = d.current_signed_prekey_id
  JOIN last_resort_prekeys l ON l.device_number = d.device_number AND l.key_id = d.current_last_resort_prekey_id
 CROSS JOIN LATERAL (SELECT count(*) AS unclaimed, count(*) FILTER (WHERE added_at < now() - $5 * interval '1 millisecond') AS over_aged
                       FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number) o
 CROSS JOIN LATERAL (SELECT count(*) AS unclaimed, count(*) FILTER (WHERE added_at < now() - $5 * interval '1 millisecond') AS over_aged
                       FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number) k
 WHERE d.user_id = $1 AND d.device_id = $2`,
);

/** Undefined for a device that is not registered. */
export async function readPrekeyStatus(
  db: Queryable,
  { userId, deviceId }: Ref,
  { signedMaxAgeMs, lastResortMaxAgeMs, oneTimeMaxAgeMs }: PrekeyLimits,
): Promise<PrekeyStatusRow | undefined> {
  return (
    await db.query<PrekeyStatusRow>(read, [userId, deviceId, signedMaxAgeMs, lastResortMaxAgeMs, oneTimeMaxAgeMs])
  )[0];
}
