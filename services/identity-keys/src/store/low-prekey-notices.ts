import { statement, type Transaction } from '@keytrail/storage';

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
