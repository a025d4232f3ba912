import type { Ref } from '@keytrail/crypto';
import { statement, type Transaction } from '@keytrail/storage';

// In the order of the numbers, so that two claims of the same devices do not wait for each other crosswise.
const note = statement(
  'drain_note',
  `WITH drained AS (
  SELECT d.device_number, d.user_id, d.device_id
    FROM unnest($1::text[], $2::text[]) AS a (user_id, device_id)
    JOIN devices d ON d.user_id = a.user_id AND d.device_id = a.device_id AND d.revoked_at IS NULL
   ORDER BY d.device_number
), noted AS (
  INSERT INTO drain_notices AS n (device_number, noticed_at) SELECT device_number, now() FROM drained
  ON CONFLICT (device_number) DO UPDATE SET noticed_at = excluded.noticed_at
   WHERE n.noticed_at <= now() - $3 * interval '1 millisecond'
  RETURNING device_number
)
SELECT d.user_id, d.device_id FROM noted JOIN drained d USING (device_number)`,
);

/** Of the devices, those for which no drain was told within `quietMs`: it counts as told now. Revoked and unknown ones have none. */
export async function noteDrained(tx: Transaction, devices: readonly Ref[], quietMs: number): Promise<Ref[]> {
  const rows = await tx.query<{ user_id: string; device_id: string }>(note, [
    devices.map(({ userId }) => userId),
    devices.map(({ deviceId }) => deviceId),
    quietMs,
  ]);
  return rows.map(({ user_id: userId, device_id: deviceId }) => ({ userId, deviceId }));
}
