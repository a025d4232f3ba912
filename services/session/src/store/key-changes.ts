import {
  type ChangeFeedRow,
  type ChangePage,
  type ChangePosition,
  changeFeedColumns,
  type Queryable,
  statement,
} from '@keytrail/storage';
import type { DeviceId } from '../domain/device.ts';
import type { KeyRequest } from '../domain/key-request.ts';
import { columns, keyRequestOf, type Row } from './key-requests.ts';

/** A request of the device, or one that is offered to it, and where it stands in the order of changes. */
export interface KeyChange {
  readonly at: ChangePosition;
  readonly offered: boolean;
  /** Of an offer, with the attempt that is offered. */
  readonly request: KeyRequest;
}

const open = `state IN ('WAITING_FOR_HOLDER', 'OFFERED')`;
const standing = `o.user_id = $1 AND o.device_id = $2 AND o.lapses_at > now() AND o.declined_at IS NULL
  AND NOT EXISTS (SELECT FROM revoked_devices r WHERE r.user_id = $1 AND r.device_id = $2)`;

const listChanges = statement(
  'list_key_changes',
  `WITH changed AS (
     SELECT changed_xid AS xid, 'r' || key_request_id AS key, key_request_id, NULL::integer AS offered_attempt
     FROM key_requests WHERE user_id = $1 AND device_id = $2 AND changed_xid >= $3::text::xid8 AND (NOT $6 OR ${open})
     UNION ALL
     SELECT o.changed_xid, 'o' || o.key_request_id || ':' || o.attempt, o.key_request_id, o.attempt
     FROM offers o WHERE ${standing} AND o.changed_xid >= $3::text::xid8
       AND NOT EXISTS (SELECT FROM offers n WHERE n.key_request_id = o.key_request_id AND n.user_id = $1 AND n.device_id = $2
         AND n.attempt > o.attempt))
   SELECT c.xid::text AS xid, c.key, c.offered_attempt, ${columns
     .split(',')
     .map((column) => `k.${column.trim()}`)
     .join(', ')}
   FROM changed c JOIN key_requests k USING (key_request_id)
   WHERE (c.xid, c.key COLLATE "C") > ($3::text::xid8, $4) AND c.xid < $5::text::xid8
     AND (c.offered_attempt IS NULL OR k.state = 'OFFERED')
   ORDER BY c.xid, c.key COLLATE "C" LIMIT $7`,
);

/** What changed about the requests of a device, and the offers to it that stand; of a page that begins anew, the open requests alone. */
export async function listKeyChanges(
  db: Queryable,
  { userId, deviceId }: DeviceId,
  { after, before, anew }: ChangePage,
  most: number,
): Promise<KeyChange[]> {
  const rows = await db.query<Row & { xid: string; key: string; offered_attempt: number | null }>(listChanges, [
    userId,
    deviceId,
    String(after.xid),
    after.key,
    String(before),
    anew,
    most,
  ]);
  return rows.map((row) => {
    const request = keyRequestOf(row);
    const offered = row.offered_attempt !== null;
    return {
      at: { xid: BigInt(row.xid), key: row.key },
      offered,
      request: row.offered_attempt === null ? request : { ...request, attempt: row.offered_attempt },
    };
  });
}

const countWaiting = statement(
  'count_keys_waiting',
  `SELECT ${changeFeedColumns},
     (SELECT count(DISTINCT o.key_request_id) FROM offers o JOIN key_requests k USING (key_request_id)
      WHERE ${standing} AND k.state = 'OFFERED')::integer AS key_offers,
     (SELECT count(*) FROM key_requests WHERE user_id = $1 AND device_id = $2 AND ${open})::integer AS open_key_requests,
     EXISTS (SELECT FROM key_requests WHERE user_id = $1 AND device_id = $2 AND changed_xid >= $3::text::xid8
       AND (changed_xid, ('r' || key_request_id) COLLATE "C") > ($3::text::xid8, $4))
     OR EXISTS (SELECT FROM offers o JOIN key_requests k USING (key_request_id)
       WHERE ${standing} AND k.state = 'OFFERED' AND o.changed_xid >= $3::text::xid8
         AND (o.changed_xid, ('o' || o.key_request_id || ':' || o.attempt) COLLATE "C") > ($3::text::xid8, $4)) AS changed`,
);

export interface KeysWaiting extends ChangeFeedRow {
  readonly key_offers: number;
  readonly open_key_requests: number;
  readonly changed: boolean;
}

/** What waits for a device, and whether anything changed after a position. */
export async function countKeysWaiting(
  db: Queryable,
  { userId, deviceId }: DeviceId,
  after: ChangePosition,
): Promise<KeysWaiting> {
  const [row] = await db.query<KeysWaiting>(countWaiting, [userId, deviceId, String(after.xid), after.key]);
  if (!row) throw new Error('what waits is always one row');
  return row;
}
