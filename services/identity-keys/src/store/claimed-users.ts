import type { Ref } from '@keytrail/crypto';
import { type Queryable, statement } from '@keytrail/storage';

/** A user whose devices are claimed from, with what a header must say of the device list. */
export interface ClaimedUserRow {
  readonly user_id: string;
  /** 0 for a user without devices, or of whom nothing is told. */
  readonly device_list_version: bigint;
  readonly root_key: Buffer | null;
  readonly log_head: Buffer | null;
}

export interface UsersDevices {
  /** In the order asked. */
  readonly users: readonly ClaimedUserRow[];
  /** Those that are not revoked: in the order of the users, then of registration. */
  readonly devices: readonly Ref[];
}

const resolve = statement(
  'claim_resolve_users',
  `SELECT a.position, a.asked_user AS user_id, coalesce(u.device_list_version, 0) AS device_list_version, u.root_key, u.log_head, d.device_id
  FROM unnest((SELECT $1::text[])) WITH ORDINALITY AS a (asked_user, position)
  LEFT JOIN LATERAL (SELECT device_list_version, root_key, log_head FROM users WHERE user_id = a.asked_user LIMIT 1) u ON true
  LEFT JOIN LATERAL (SELECT device_id, added_in_version FROM devices
                      WHERE user_id = a.asked_user AND revoked_at IS NULL ORDER BY added_in_version OFFSET 0) d ON true
 ORDER BY a.position, d.added_in_version LIMIT $2`,
);

/** The users with the devices that they have now; of more than `maxDevices` devices, at least one more than that. */
export async function resolveUsers(
  db: Queryable,
  userIds: readonly string[],
  maxDevices: number,
): Promise<UsersDevices> {
  const rows = await db.query<ClaimedUserRow & { position: bigint; device_id: string | null }>(resolve, [
    userIds,
    userIds.length + maxDevices + 1,
  ]);
  const users = rows.filter((row, i) => row.position !== rows[i - 1]?.position);
  const devices = rows.flatMap(({ user_id: userId, device_id: deviceId }) =>
    deviceId === null ? [] : [{ userId, deviceId }],
  );
  return { users, devices };
}

const recordedUsers = statement(
  'claim_recorded_users',
  `SELECT r.user_id, CASE WHEN l.version IS NULL THEN 0 ELSE r.version END AS device_list_version, l.root_key, l.entry_hash AS log_head
  FROM claims c
 CROSS JOIN LATERAL unnest(c.user_ids, c.device_list_versions) WITH ORDINALITY AS r (user_id, version, position)
  LEFT JOIN device_log l ON l.user_id = r.user_id AND l.version = r.version
 WHERE c.caller = $1 AND c.claim_id = $2 ORDER BY r.position`,
);

const recordedDevices = statement(
  'claim_recorded_devices',
  `SELECT d.user_id, d.device_id
  FROM claims c
 CROSS JOIN LATERAL unnest(c.device_numbers) WITH ORDINALITY AS r (device_number, position)
  LEFT JOIN LATERAL (SELECT user_id, device_id FROM devices WHERE device_number = r.device_number LIMIT 1) d ON true
 WHERE c.caller = $1 AND c.claim_id = $2 ORDER BY r.position`,
);

/** What a recorded claim by users was about. A user or device that was erased since has nothing to tell: version 0, no device. */
export async function readClaimedUsers(
  db: Queryable,
  { caller, claimId }: { readonly caller: string; readonly claimId: string },
): Promise<{ users: readonly ClaimedUserRow[]; devices: readonly (Ref | undefined)[] }> {
  const [users, devices] = await Promise.all([
    db.query<ClaimedUserRow>(recordedUsers, [caller, claimId]),
    db.query<{ user_id: string | null; device_id: string | null }>(recordedDevices, [caller, claimId]),
  ]);
  return {
    users,
    devices: devices.map(({ user_id: userId, device_id: deviceId }) =>
      userId === null || deviceId === null ? undefined : { userId, deviceId },
    ),
  };
}
