import { type Queryable, statement } from '@keytrail/storage';

/** A one-time prekey that was asked for by its id, or a row of a pool. */
export interface PublishedPrekeyRow {
  readonly kem: boolean;
  readonly key_id: bigint;
  readonly from_pool: boolean;
  /** SHA-256 of the public key; null when no prekey of the kind was uploaded under the id, and for rows of a pool. */
  readonly hash: Buffer | null;
  readonly retired: boolean;
  /** The id is that of a last-resort prekey. */
  readonly last_resort: boolean;
}

// A pool is read as a whole, as it is bounded; named prekeys are looked up one by one, as the keys of years are not. What of the one is in
// the other is left to the caller: the planner cannot be told to hash both.
const published = (kem: boolean, pool: string, keys: string, ids: string, lastResort: string) => `
SELECT ${kem} AS kem, n.key_id, false AS from_pool, coalesce(k.public_key_digest, sha256(k.public_key)) AS hash,
       coalesce(k.retired, false) AS retired, ${lastResort} AS last_resort
  FROM unnest((SELECT ${ids}::bigint[])) AS n (key_id)
  LEFT JOIN LATERAL (SELECT public_key, public_key_digest, retired FROM ${keys} k WHERE k.device_number = $1 AND k.key_id = n.key_id LIMIT 1) k ON true
UNION ALL
SELECT ${kem}, key_id, true, NULL, false, false FROM ${pool} WHERE device_number = $1`;

// $1 device number, $2 and $3 ids of one-time and of one-time KEM prekeys.
const lastResort =
  'EXISTS (SELECT FROM last_resort_prekeys l WHERE l.device_number = $1 AND l.key_id = n.key_id OFFSET 0)';
const read = statement(
  'published_prekeys_read',
  `${published(false, 'unclaimed_one_time_prekeys', 'one_time_prekeys', '$2', 'false')}
UNION ALL ${published(true, 'unclaimed_one_time_kem_prekeys', 'one_time_kem_prekeys', '$3', lastResort)}`,
);

/** All of one snapshot, in no order. */
export function readPublishedPrekeys(
  db: Queryable,
  deviceNumber: bigint,
  named: { readonly oneTime: readonly number[]; readonly kem: readonly number[] },
): Promise<PublishedPrekeyRow[]> {
  return db.query<PublishedPrekeyRow>(read, [deviceNumber, named.oneTime, named.kem]);
}
