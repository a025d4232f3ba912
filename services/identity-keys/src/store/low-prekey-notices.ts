import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { PrekeyLimits } from '../domain/prekey-limits.ts';

/** A device with a low pool, as a claim saw it. */
export interface LowDevice {
  readonly deviceNumber: bigint;
  /** All one-time prekeys that it ever added. */
  readonly prekeysAdded: bigint;
}

/** A device that is to be told now. */
export interface Notice {
  readonly user_id: string;
  readonly device_id: string;
  readonly one_time: bigint;
  readonly kem: bigint;
}

// In the order of the numbers, so that two claims of the same devices do not wait for each other crosswise.
const note = statement(
  'low_prekeys_note',
  `WITH noted AS (
  INSERT INTO low_prekey_notices AS n (device_number, prekeys_added, noticed_at)
  SELECT device_number, prekeys_added, now() FROM unnest($1::bigint[], $2::bigint[]) AS low (device_number, prekeys_added)
   WHERE EXISTS (SELECT FROM devices d WHERE d.device_number = low.device_number AND d.revoked_at IS NULL OFFSET 0)
   ORDER BY device_number
  ON CONFLICT (device_number) DO UPDATE SET prekeys_added = excluded.prekeys_added, noticed_at = excluded.noticed_at
   WHERE n.prekeys_added < excluded.prekeys_added OR n.noticed_at < now() - $3 * interval '1 millisecond'
  RETURNING device_number
)
SELECT d.user_id, d.device_id,
       (SELECT count(*) FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number) AS one_time,
       (SELECT count(*) FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number) AS kem
  FROM noted JOIN devices d USING (device_number) WHERE d.revoked_at IS NULL ORDER BY d.device_number`,
);

/** Of the low devices, those that have not been told since they last added prekeys, nor within `reminderMs`: they count as told now. */
export function noteLowPrekeys(tx: Transaction, devices: readonly LowDevice[], reminderMs: number): Promise<Notice[]> {
  return tx.query<Notice>(note, [
    devices.map(({ deviceNumber }) => deviceNumber),
    devices.map(({ prekeysAdded }) => prekeysAdded),
    reminderMs,
  ]);
}

// Whether a device d has something to do about its prekeys. $1 low below, $2 and $3 greatest ages of signed and last-resort prekeys, in
// ms. Counts up to what is low and no further.
const isDue = `(
  (SELECT count(*) FROM (SELECT FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number LIMIT $1::bigint) few) < $1::bigint
  OR (SELECT count(*) FROM (SELECT FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number LIMIT $1::bigint) few) < $1::bigint
  OR EXISTS (SELECT FROM signed_prekeys s WHERE s.device_number = d.device_number AND s.key_id = d.current_signed_prekey_id
                AND s.added_at < now() - $2 * interval '1 millisecond' OFFSET 0)
  OR EXISTS (SELECT FROM last_resort_prekeys l WHERE l.device_number = d.device_number AND l.key_id = d.current_last_resort_prekey_id
                AND (l.added_at < now() - $3 * interval '1 millisecond' OR l.handed_out_at IS NOT NULL AND EXISTS (
                      SELECT FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number OFFSET 0)) OFFSET 0))`;

const told = (noticed: string) => `
SELECT d.user_id, d.device_id,
       (SELECT count(*) FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number) AS one_time,
       (SELECT count(*) FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number) AS kem
  FROM ${noticed} JOIN devices d USING (device_number) ORDER BY d.device_number`;

// $4 device numbers.
const noteDue = statement(
  'low_prekeys_note_due',
  `WITH noted AS (
  INSERT INTO low_prekey_notices (device_number, prekeys_added, noticed_at)
  SELECT d.device_number, d.one_time_prekeys_added + d.kem_prekeys_added, now() FROM devices d
   WHERE d.device_number = ANY ($4::bigint[]) AND d.revoked_at IS NULL
     AND NOT EXISTS (SELECT FROM low_prekey_notices n WHERE n.device_number = d.device_number OFFSET 0) AND ${isDue}
   ORDER BY d.device_number
  ON CONFLICT (device_number) DO NOTHING RETURNING device_number
)${told('noted')}`,
);

// $4 reminder in ms, $5 how many. A notice of a device that has nothing to do any more goes.
const remind = statement(
  'low_prekeys_remind',
  `WITH chosen AS MATERIALIZED (
  SELECT n.device_number FROM low_prekey_notices n WHERE n.noticed_at < now() - $4 * interval '1 millisecond'
   ORDER BY n.noticed_at LIMIT $5 FOR UPDATE SKIP LOCKED
), looked AS MATERIALIZED (
  SELECT d.device_number, d.one_time_prekeys_added + d.kem_prekeys_added AS added, d.revoked_at IS NULL AND ${isDue} AS due
    FROM chosen JOIN devices d USING (device_number)
), settled AS (
  DELETE FROM low_prekey_notices n USING looked l WHERE n.device_number = l.device_number AND NOT l.due
), again AS (
  UPDATE low_prekey_notices n SET noticed_at = now(), prekeys_added = l.added FROM looked l WHERE n.device_number = l.device_number AND l.due
  RETURNING n.device_number
)${told('again')}`,
);

const settle = statement(
  'low_prekeys_settle',
  `DELETE FROM low_prekey_notices n USING devices d WHERE n.device_number = $4 AND d.device_number = $4 AND NOT ${isDue}`,
);

const nextPage = statement(
  'prekey_sweep_page',
  `WITH at AS MATERIALIZED (SELECT after_device_number FROM prekey_sweep FOR UPDATE SKIP LOCKED),
  page AS MATERIALIZED (
  SELECT d.device_number, d.revoked_at FROM at CROSS JOIN LATERAL (
    SELECT device_number, revoked_at FROM devices WHERE device_number > at.after_device_number ORDER BY device_number LIMIT $1) d
), moved AS (
  UPDATE prekey_sweep SET after_device_number = coalesce((SELECT max(device_number) FROM page), 0) WHERE EXISTS (SELECT FROM at)
)
SELECT d.device_number,
       least((SELECT p.added_at FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number ORDER BY p.seq LIMIT 1),
             (SELECT p.added_at FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = d.device_number ORDER BY p.seq LIMIT 1))
         < now() - $2 * interval '1 millisecond' AS over_aged
  FROM page d WHERE d.revoked_at IS NULL ORDER BY d.device_number`,
);

const due = ({ lowBelow, signedMaxAgeMs, lastResortMaxAgeMs }: PrekeyLimits) => [
  lowBelow,
  signedMaxAgeMs,
  lastResortMaxAgeMs,
];

/** Of these devices, those that have something to do about their prekeys and have not been told: they count as told now. */
export function noteDuePrekeys(
  tx: Transaction,
  deviceNumbers: readonly bigint[],
  limits: PrekeyLimits,
): Promise<Notice[]> {
  return tx.query<Notice>(noteDue, [...due(limits), deviceNumbers]);
}

/** At most `limit` of the devices that were told longer than `reminderMs` ago and still have it to do. Another replica gets others. */
export function remindDevices(
  tx: Transaction,
  limits: PrekeyLimits,
  { reminderMs, limit }: { readonly reminderMs: number; readonly limit: number },
): Promise<Notice[]> {
  return tx.query<Notice>(remind, [...due(limits), reminderMs, limit]);
}

/** Forgets that a device was told, when it has nothing to do any more. */
export async function settleNotice(db: Queryable, deviceNumber: bigint, limits: PrekeyLimits): Promise<void> {
  await db.query(settle, [...due(limits), deviceNumber]);
}

export interface SweptDevice {
  readonly device_number: bigint;
  /** Its oldest one-time prekey has waited for too long; null without any. */
  readonly over_aged: boolean | null;
}

/**
 * The next `size` devices in the order of their numbers, revoked ones left out; after the last one it begins anew. Holds the position until the
 * end of the transaction: meanwhile nobody else gets a page.
 */
export function nextPageOfDevices(
  tx: Transaction,
  size: number,
  { oneTimeMaxAgeMs }: PrekeyLimits,
): Promise<SweptDevice[]> {
  return tx.query<SweptDevice>(nextPage, [size, oneTimeMaxAgeMs]);
}
