import type { Ref } from '@keytrail/crypto';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';

/** What a user kept for recovery, and whether the device that asks was revoked. */
export interface RecoveryRow {
  readonly root_key: Buffer | null;
  readonly sealed_root_key: Buffer | null;
  readonly updated_at: Date | null;
  readonly revoked_at: Date | null;
}

const keep = statement(
  'recovery_keep',
  `INSERT INTO recoveries AS r (user_id, root_key, sealed_root_key, updated_at)
VALUES ($1, $2, $3, date_trunc('milliseconds', clock_timestamp()))
ON CONFLICT (user_id) DO UPDATE SET root_key = excluded.root_key, sealed_root_key = excluded.sealed_root_key,
  updated_at = greatest(r.updated_at, excluded.updated_at)
RETURNING updated_at`,
);
const read = statement(
  'recovery_read',
  `SELECT r.root_key, r.sealed_root_key, r.updated_at, d.revoked_at
  FROM (VALUES ($1::text, $2::text)) AS caller (user_id, device_id)
  LEFT JOIN recoveries r USING (user_id) LEFT JOIN devices d USING (user_id, device_id)`,
);
const remove = statement('recovery_remove', 'DELETE FROM recoveries WHERE user_id = $1');

/** Keeps the sealed root key in place of an earlier one; tells when. The user must be locked, and `rootKey` be the present one. */
export async function keepRecovery(
  tx: Transaction,
  userId: string,
  { rootKey, sealedRootKey }: { readonly rootKey: Uint8Array; readonly sealedRootKey: Uint8Array },
): Promise<Date> {
  const [kept] = await tx.query<{ updated_at: Date }>(keep, [userId, rootKey, sealedRootKey]);
  if (!kept) throw new Error('a recovery was kept without an answer');
  return kept.updated_at;
}

export async function readRecovery(db: Queryable, { userId, deviceId }: Ref): Promise<RecoveryRow | undefined> {
  return (await db.query<RecoveryRow>(read, [userId, deviceId]))[0];
}

/** A recovery is of the present root key alone. */
export async function removeRecovery(tx: Transaction, userId: string): Promise<void> {
  await tx.query(remove, [userId]);
}
