import { type Database, requestIdRetentionMs, statement } from '@keytrail/storage';

/** How many prekeys lost their bytes. */
export interface Shrunk {
  readonly oneTime: number;
  readonly kem: number;
  readonly signed: number;
  readonly lastResort: number;
}

/** A statement stops taking claims when those that it has are of so many devices. */
const devicesAtOnce = 2_000;

// A one-time prekey is in one claim at most: with the claim goes the need for its bytes. $2 claims at most, and of not many more devices than
// above, as a claim may be of 1,500: one statement stays short. `found` says whether there may be more.
export const forgetting = (which: string, order: string) => `WITH locked AS MATERIALIZED (
  SELECT caller, claim_id, claimed_at, cardinality(device_numbers) AS devices FROM claims WHERE ${which} ORDER BY ${order} LIMIT $2
   FOR UPDATE SKIP LOCKED
), old AS MATERIALIZED (
  SELECT caller, claim_id, claimed_at FROM (
    SELECT *, sum(devices) OVER (ORDER BY ${order} ROWS UNBOUNDED PRECEDING) - devices AS before FROM locked) counted WHERE before < ${devicesAtOnce}
), forgotten AS (
  DELETE FROM claims c USING old o WHERE c.caller = o.caller AND c.claim_id = o.claim_id
  RETURNING c.device_numbers, c.one_time_prekey_ids, c.kem_prekey_ids
), taken AS MATERIALIZED (
  SELECT t.* FROM forgotten f
   CROSS JOIN LATERAL unnest(f.device_numbers, f.one_time_prekey_ids, f.kem_prekey_ids) AS t (device_number, one_time_id, kem_id)
), one_time AS (
  UPDATE one_time_prekeys k SET public_key_digest = sha256(k.public_key), public_key = NULL FROM taken t
   WHERE k.device_number = t.device_number AND k.key_id = t.one_time_id AND k.public_key IS NOT NULL RETURNING 1
), kem AS (
  UPDATE one_time_kem_prekeys k SET public_key_digest = sha256(k.public_key), public_key = NULL, signature = NULL FROM taken t
   WHERE k.device_number = t.device_number AND k.key_id = t.kem_id AND k.public_key IS NOT NULL RETURNING 1
)
SELECT (SELECT max(claimed_at) FROM old)::text AS reached, (SELECT count(*) FROM locked) AS found, (SELECT count(*) FROM forgotten) AS claims, (SELECT count(*) FROM one_time) AS one_time, (SELECT count(*) FROM kem) AS kem`;
const forget = statement(
  'claims_forget',
  forgetting("claimed_at < now() - $1 * interval '1 millisecond' AND claimed_at >= $3::timestamptz", 'claimed_at'),
);

const shrink = (table: string) => `WITH old AS MATERIALIZED (
  SELECT device_number, key_id FROM ${table} WHERE replaced_at < now() - $1 * interval '1 millisecond' AND public_key IS NOT NULL
   ORDER BY replaced_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
), shrunk AS (
  UPDATE ${table} k SET public_key_digest = sha256(k.public_key), public_key = NULL, signature = NULL
    FROM old o WHERE k.device_number = o.device_number AND k.key_id = o.key_id RETURNING 1
)
SELECT count(*) AS shrunk FROM shrunk`;
const shrinkSigned = statement('signed_prekeys_shrink', shrink('signed_prekeys'));
const shrinkLastResort = statement('last_resort_prekeys_shrink', shrink('last_resort_prekeys'));

const claimsAtOnce = 2_000;
const prekeysAtOnce = 1_000;

/** Forgets all claims that are older than the retention, in batches, each with the bytes of its one-time prekeys. */
export async function forgetClaims(db: Database): Promise<{ claims: number } & Pick<Shrunk, 'oneTime' | 'kem'>> {
  const sum = { claims: 0, oneTime: 0, kem: 0 };
  // Each statement goes on where the one before ended, as text with its microseconds: else it would walk over all that are gone already.
  for (let from = '-infinity'; ; ) {
    const [row] = await db.query<
      Record<'found' | 'claims' | 'one_time' | 'kem', bigint> & { readonly reached: string | null }
    >(forget, [requestIdRetentionMs, claimsAtOnce, from]);
    sum.claims += Number(row?.claims);
    sum.oneTime += Number(row?.one_time);
    sum.kem += Number(row?.kem);
    if (!row?.reached || (row.found === row.claims && Number(row.found) < claimsAtOnce)) return sum;
    from = row.reached;
  }
}

/** Takes the bytes of signed and last-resort prekeys that were replaced longer than `ageMs` ago. */
export async function shrinkReplacedPrekeys(
  db: Database,
  ageMs: number,
): Promise<Pick<Shrunk, 'signed' | 'lastResort'>> {
  const all = async (which: typeof shrinkSigned) => {
    let sum = 0;
    for (;;) {
      const [row] = await db.query<{ shrunk: bigint }>(which, [ageMs, prekeysAtOnce]);
      sum += Number(row?.shrunk);
      if (Number(row?.shrunk) < prekeysAtOnce) return sum;
    }
  };
  return { signed: await all(shrinkSigned), lastResort: await all(shrinkLastResort) };
}
