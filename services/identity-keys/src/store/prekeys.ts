import type { KemPrekey, OneTimePrekey } from '@keytrail/contracts';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';

export interface PoolCounts {
  readonly oneTime: number;
  readonly kem: number;
}

/** What became of an uploaded prekey: new, there already with this very key, or its id names another key. */
export type Fate = 'added' | 'known' | 'conflict';

const lock = statement('device_lock', 'SELECT revoked_at FROM devices WHERE device_number = $1 FOR NO KEY UPDATE');
const count = statement(
  'prekeys_count',
  `SELECT (SELECT count(*) FROM unclaimed_one_time_prekeys WHERE device_number = $1) AS one_time,
          (SELECT count(*) FROM unclaimed_one_time_kem_prekeys WHERE device_number = $1) AS kem`,
);

// A key id enters one_time_prekeys once and for all, so a prekey enters the pool once: the primary key decides what is new.
const addOneTime = statement(
  'prekeys_add_one_time',
  `WITH offered AS (
  SELECT * FROM unnest($2::bigint[], $3::bytea[]) WITH ORDINALITY AS o (key_id, public_key, position)
), added AS (
  INSERT INTO one_time_prekeys (device_number, key_id, public_key)
  SELECT $1, key_id, public_key FROM offered ON CONFLICT (device_number, key_id) DO NOTHING RETURNING key_id
), counted AS (
  UPDATE devices SET one_time_prekeys_added = one_time_prekeys_added + (SELECT count(*) FROM added)
   WHERE device_number = $1 RETURNING one_time_prekeys_added - (SELECT count(*) FROM added) AS before
), pooled AS (
  INSERT INTO unclaimed_one_time_prekeys (device_number, seq, key_id)
  SELECT $1, c.before + row_number() OVER (ORDER BY o.position), o.key_id FROM added JOIN offered o USING (key_id) CROSS JOIN counted c
)
SELECT CASE WHEN a.key_id IS NOT NULL THEN 'added' WHEN coalesce(k.public_key = o.public_key, k.public_key_digest = sha256(o.public_key)) THEN 'known' ELSE 'conflict' END AS fate
  FROM offered o LEFT JOIN added a USING (key_id)
  LEFT JOIN one_time_prekeys k ON k.device_number = $1 AND k.key_id = o.key_id
 ORDER BY o.position`,
);

const addKem = statement(
  'prekeys_add_kem',
  `WITH offered AS (
  SELECT * FROM unnest($2::bigint[], $3::bytea[], $4::bytea[]) WITH ORDINALITY AS o (key_id, public_key, signature, position)
), added AS (
  INSERT INTO one_time_kem_prekeys (device_number, key_id, public_key, signature)
  SELECT $1, key_id, public_key, signature FROM offered o
   WHERE NOT EXISTS (SELECT FROM last_resort_prekeys l WHERE l.device_number = $1 AND l.key_id = o.key_id)
  ON CONFLICT (device_number, key_id) DO NOTHING RETURNING key_id
), counted AS (
  UPDATE devices SET kem_prekeys_added = kem_prekeys_added + (SELECT count(*) FROM added)
   WHERE device_number = $1 RETURNING kem_prekeys_added - (SELECT count(*) FROM added) AS before
), pooled AS (
  INSERT INTO unclaimed_one_time_kem_prekeys (device_number, seq, key_id)
  SELECT $1, c.before + row_number() OVER (ORDER BY o.position), o.key_id FROM added JOIN offered o USING (key_id) CROSS JOIN counted c
)
SELECT CASE WHEN a.key_id IS NOT NULL THEN 'added' WHEN coalesce(k.public_key = o.public_key, k.public_key_digest = sha256(o.public_key)) THEN 'known' ELSE 'conflict' END AS fate
  FROM offered o LEFT JOIN added a USING (key_id)
  LEFT JOIN one_time_kem_prekeys k ON k.device_number = $1 AND k.key_id = o.key_id
 ORDER BY o.position`,
);

/** When the device was revoked, if it was. Holds the device until the end of the transaction, so that its pools have one writer. */
export async function lockDevice(tx: Transaction, deviceNumber: bigint): Promise<Date | null> {
  const [device] = await tx.query<{ revoked_at: Date | null }>(lock, [deviceNumber]);
  if (!device) throw new Error('the device was erased meanwhile');
  return device.revoked_at;
}

/** Adds what is new to the pool, in the order given. The device must be locked, or added in this transaction. */
export async function addOneTimePrekeys(
  tx: Transaction,
  deviceNumber: bigint,
  prekeys: readonly OneTimePrekey[],
): Promise<Fate[]> {
  if (prekeys.length === 0) return [];
  const rows = await tx.query<{ fate: Fate }>(addOneTime, [
    deviceNumber,
    prekeys.map(({ keyId }) => keyId),
    prekeys.map(({ publicKey }) => asBuffer(publicKey)),
  ]);
  return rows.map(({ fate }) => fate);
}

/** As `addOneTimePrekeys`; the id of a last-resort prekey is a conflict whatever the key. */
export async function addKemPrekeys(
  tx: Transaction,
  deviceNumber: bigint,
  prekeys: readonly KemPrekey[],
): Promise<Fate[]> {
  if (prekeys.length === 0) return [];
  const rows = await tx.query<{ fate: Fate }>(addKem, [
    deviceNumber,
    prekeys.map(({ keyId }) => keyId),
    prekeys.map(({ publicKey }) => asBuffer(publicKey)),
    prekeys.map(({ signature }) => asBuffer(signature)),
  ]);
  return rows.map(({ fate }) => fate);
}

export async function countUnclaimed(db: Queryable, deviceNumber: bigint): Promise<PoolCounts> {
  const [row] = await db.query<{ one_time: bigint; kem: bigint }>(count, [deviceNumber]);
  return { oneTime: Number(row?.one_time), kem: Number(row?.kem) };
}

// pg writes an array of plain Uint8Arrays as arrays of numbers.
function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
