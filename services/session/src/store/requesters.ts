import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import { type DeviceId, deviceKey } from '../domain/device.ts';
import type { StandingOffers } from '../domain/share-room.ts';

// Taken before any row of the device's requests is locked.
const lock = statement(
  'lock_requester',
  `SELECT pg_advisory_xact_lock(hashtext('key requests of'), hashtext($1::text)) IS NULL AS locked`,
);

/**
 * One at a time counts what a device has open and what of it is offered, and changes it: until the transaction ends. Several devices are
 * locked in one order.
 */
export function lockRequesters(tx: Transaction, devices: readonly DeviceId[]): void {
  for (const key of [...new Set(devices.map(deviceKey))].sort()) tx.send(lock, [key]);
}

const readLoad = statement(
  'read_load_of_requester',
  `SELECT (SELECT count(*)::integer FROM key_requests
       WHERE user_id = $1 AND device_id = $2 AND state IN ('WAITING_FOR_HOLDER', 'OFFERED')) AS open,
     (SELECT json_agg(json_build_array(held.user_id, held.device_id, held.foreground, held.standing)) FROM (
       SELECT o.user_id, o.device_id, count(*) FILTER (WHERE k.priority = 'FOREGROUND') AS foreground, count(*) AS standing
       FROM key_requests k JOIN offers o USING (key_request_id)
       WHERE k.user_id = $1 AND k.device_id = $2 AND k.state = 'OFFERED' AND o.lapses_at > now() AND o.declined_at IS NULL
       GROUP BY o.user_id, o.device_id) held) AS standing`,
);

/** What a device has open, and what of it is offered to whom. */
export interface RequesterLoad {
  readonly open: number;
  readonly standing: StandingOffers;
}

export async function readRequesterLoad(db: Queryable, { userId, deviceId }: DeviceId): Promise<RequesterLoad> {
  const [row] = await db.query<{ open: number; standing: [string, string, number, number][] | null }>(readLoad, [
    userId,
    deviceId,
  ]);
  if (!row) throw new Error('a count is always one row');
  return {
    open: row.open,
    standing: new Map(
      (row.standing ?? []).map(([holderUserId, holderDeviceId, foreground, all]) => [
        deviceKey({ userId: holderUserId, deviceId: holderDeviceId }),
        { foreground, all },
      ]),
    ),
  };
}

// One that is being changed just now is seen to by whoever does; one that is due already, by whoever made it so.
const callNext = statement(
  'call_next_in_queue',
  `UPDATE key_requests SET next_attempt_at = now(), version = version + 1 WHERE key_request_id IN (
     SELECT key_request_id FROM key_requests
     WHERE user_id = $1 AND device_id = $2 AND state = 'WAITING_FOR_HOLDER' AND queued_at IS NOT NULL AND next_attempt_at > now()
     ORDER BY priority DESC, requested_at, key_request_id LIMIT $3 FOR UPDATE SKIP LOCKED)
   RETURNING key_request_id, attempt`,
);

/** Makes those due that wait for their turn longest, as many as there is room for. */
export async function callNextInQueue(
  tx: Transaction,
  { userId, deviceId }: DeviceId,
  room: number,
): Promise<readonly { readonly keyRequestId: string; readonly attempt: number }[]> {
  const rows = await tx.query<{ key_request_id: string; attempt: number }>(callNext, [userId, deviceId, room]);
  return rows.map((row) => ({ keyRequestId: row.key_request_id, attempt: row.attempt }));
}
