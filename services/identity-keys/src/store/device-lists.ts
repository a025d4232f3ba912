import { type Queryable, statement } from '@keytrail/storage';

/** One device of one user asked for; a user without devices has one row without a device. */
export interface DeviceListRow {
  /** From 1, in the order asked. */
  readonly position: bigint;
  readonly root_key: Buffer | null;
  readonly device_list_version: bigint | null;
  readonly log_head: Buffer | null;
  readonly device_id: string | null;
  readonly suite: number;
  readonly identity_key: Buffer;
  readonly signing_key: Buffer;
  readonly certificate_root_key: Buffer;
  readonly certificate_signature: Buffer;
  readonly certified_at: Date;
  readonly signed_prekey_id: bigint;
  readonly signed_prekey: Buffer;
  readonly signed_prekey_signature: Buffer;
  readonly last_resort_prekey_id: bigint;
  readonly last_resort_prekey: Buffer;
  readonly last_resort_prekey_signature: Buffer;
  readonly added_in_version: bigint;
  readonly added_at: Date;
  readonly revoked_at: Date | null;
}

// The sub-select hides the length of the array from the planner, which would plan every call anew; see claims.ts.
const read = statement(
  'device_lists_read',
  `SELECT a.position, u.root_key, u.device_list_version, u.log_head, d.*,
       s.public_key AS signed_prekey, s.signature AS signed_prekey_signature,
       l.public_key AS last_resort_prekey, l.signature AS last_resort_prekey_signature
  FROM unnest((SELECT $1::text[])) WITH ORDINALITY AS a (asked_user, position)
  LEFT JOIN LATERAL (SELECT root_key, device_list_version, log_head FROM users WHERE user_id = a.asked_user LIMIT 1) u ON true
  LEFT JOIN LATERAL (SELECT device_number, device_id, suite, identity_key, signing_key, certificate_root_key, certificate_signature,
                            certified_at, current_signed_prekey_id AS signed_prekey_id,
                            current_last_resort_prekey_id AS last_resort_prekey_id, added_in_version, added_at, revoked_at
                       FROM devices WHERE user_id = a.asked_user AND ($2 OR revoked_at IS NULL) ORDER BY added_in_version OFFSET 0) d ON true
  LEFT JOIN LATERAL (SELECT public_key, signature FROM signed_prekeys p
                      WHERE p.device_number = d.device_number AND p.key_id = d.signed_prekey_id LIMIT 1) s ON true
  LEFT JOIN LATERAL (SELECT public_key, signature FROM last_resort_prekeys p
                      WHERE p.device_number = d.device_number AND p.key_id = d.last_resort_prekey_id LIMIT 1) l ON true
 ORDER BY a.position, d.added_in_version LIMIT $3`,
);

/** The device lists of users in the order asked, at most `limit` rows. Users whose devices are all revoked keep version and root key. */
export function readDeviceLists(
  db: Queryable,
  { userIds, includeRevoked, limit }: { userIds: readonly string[]; includeRevoked: boolean; limit: number },
): Promise<DeviceListRow[]> {
  return db.query<DeviceListRow>(read, [userIds, includeRevoked, limit]);
}
