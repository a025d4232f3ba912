import { type Queryable, statement } from '@keytrail/storage';

/** A one-time prekey that the device named, or that its pool has without the device having named it. */
export interface PublishedPrekeyRow {
  readonly kem: boolean;
  readonly key_id: bigint;
  readonly named: boolean;
  /** SHA-256 of the public key; null when no prekey of the kind was uploaded under the id. */
  readonly hash: Buffer | null;
  readonly unclaimed: boolean;
  readonly retired: boolean;
  /** The id is that of a last-resort prekey. */
  readonly last_resort: boolean;
}

// A pool is read as a whole, as it is bounded; named prekeys are looked up one by one, as the keys of years are not.
const compared = (kem: boolean, pool: string, keys: string, ids: string, lastResort: string) => `
SELECT ${kem} AS kem, n.key_id, true AS named, coalesce(k.public_key_digest, sha256(k.public_key)) AS hash, p.key_id IS NOT NULL AS unclaimed,
       coalesce(k.retired, false) AS retired, ${lastResort} AS last_resort
  FROM unnest((SELECT ${ids}::bigint[])) AS n (key_id)
  LEFT JOIN LATERAL (SELECT public_key, public_key_digest, retired FROM ${keys} k WHERE k.device_number = $1 AND k.key_id = n.key_id LIMIT 1) k ON true
  LEFT JOIN ${pool} p ON p.key_id = n.key_id
UNION ALL
SELECT ${kem}, p.key_id, false, NULL, true, false, false FROM ${pool} p
 WHERE NOT EXISTS (SELECT FROM unnest((SELECT ${ids}::bigint[])) AS n (key_id) WHERE n.key_id = p.key_id)`;

// $1 device number, $2 and $3 ids of one-time and of one-time KEM prekeys.
const read = statement(
  'published_prekeys_read',
  `WITH one_time AS MATERIALIZED (SELECT key_id FROM unclaimed_one_time_prekeys WHERE device_number = $1),
  kem AS MATERIALIZED (SELECT key_id FROM unclaimed_one_time_kem_prekeys WHERE device_number = $1)
SELECT * FROM (${compared(false, 'one_time', 'one_time_prekeys', '$2', 'false')}
UNION ALL ${compared(
    true,
    'kem',
    'one_time_kem_prekeys',
    '$3',
    'EXISTS (SELECT FROM last_resort_prekeys l WHERE l.device_number = $1 AND l.key_id = n.key_id OFFSET 0)',
  )}) rows ORDER BY kem, key_id`,
);

/** Ascending by id. */
export function readPublishedPrekeys(
  db: Queryable,
  deviceNumber: bigint,
  named: { readonly oneTime: readonly number[]; readonly kem: readonly number[] },
): Promise<PublishedPrekeyRow[]> {
  return db.query<PublishedPrekeyRow>(read, [deviceNumber, named.oneTime, named.kem]);
}
