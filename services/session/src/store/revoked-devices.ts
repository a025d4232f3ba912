import { type Queryable, statement } from '@keytrail/storage';
import type { DeviceId } from '../domain/device.ts';

export interface Revocation extends DeviceId {
  readonly revokedAt: Date;
}

// What was open for such a device is looked at now: its own requests end, and what was offered to it is offered to others.
const insertRevoked = statement(
  'insert_revoked_devices',
  `WITH noted AS (
     INSERT INTO revoked_devices (user_id, device_id, revoked_at)
     SELECT DISTINCT ON (user_id, device_id) user_id, device_id, revoked_at
     FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS told (user_id, device_id, revoked_at)
     ON CONFLICT DO NOTHING RETURNING user_id, device_id),
   hurried AS (
     UPDATE key_requests SET next_attempt_at = now(), version = version + 1
     WHERE state IN ('WAITING_FOR_HOLDER', 'OFFERED') AND key_request_id IN (
       SELECT k.key_request_id FROM key_requests k JOIN noted USING (user_id, device_id)
       UNION SELECT o.key_request_id FROM offers o JOIN noted USING (user_id, device_id)
         WHERE o.lapses_at > now() AND o.declined_at IS NULL))
   SELECT user_id, device_id FROM noted`,
);

/** From here on the devices' reads are misses, they are no holders, and their own requests end. How many were new. */
export async function noteRevokedDevices(db: Queryable, revocations: readonly Revocation[]): Promise<number> {
  const noted = await db.query(insertRevoked, [
    revocations.map(({ userId }) => userId),
    revocations.map(({ deviceId }) => deviceId),
    revocations.map(({ revokedAt }) => revokedAt),
  ]);
  return noted.length;
}
