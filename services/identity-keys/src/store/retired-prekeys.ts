import { type Database, statement, type Transaction } from '@keytrail/storage';
import type { PoolCounts } from './prekeys.ts';

interface Pool {
  readonly unclaimed: string;
  readonly keys: string;
  /** What a shrunk key loses besides its bytes. */
  readonly alsoGone: string;
  readonly counter: string;
}

const oneTime: Pool = {
  unclaimed: 'unclaimed_one_time_prekeys',
  keys: 'one_time_prekeys',
  alsoGone: '',
  counter: 'one_time_prekeys_retired',
};
const kem: Pool = {
  unclaimed: 'unclaimed_one_time_kem_prekeys',
  keys: 'one_time_kem_prekeys',
  alsoGone: ', signature = NULL',
  counter: 'kem_prekeys_retired',
};

// What left the pool unclaimed is in no claim: nobody can need its bytes, and its SHA-256 stays.
const retire = ({ unclaimed, keys, alsoGone, counter }: Pool) => `
gone AS (
  DELETE FROM ${unclaimed} p USING chosen c WHERE p.device_number = c.device_number AND p.seq = c.seq RETURNING p.device_number, p.key_id
), shrunk AS (
  UPDATE ${keys} k SET retired = true, public_key_digest = sha256(k.public_key), public_key = NULL${alsoGone}
    FROM gone g WHERE k.device_number = g.device_number AND k.key_id = g.key_id
), counted AS (
  UPDATE devices d SET ${counter} = d.${counter} + g.retired
    FROM (SELECT device_number, count(*) AS retired FROM gone GROUP BY device_number) g WHERE d.device_number = g.device_number
)
SELECT count(*) AS retired FROM gone`;

// In the order of seq, and waiting for prekeys that claims hold: docs/decisions/0003-claims.md.
const retireNamed = (pool: Pool) => `WITH chosen AS MATERIALIZED (
  SELECT device_number, seq FROM ${pool.unclaimed} WHERE device_number = $1 AND key_id = ANY ($2::bigint[]) ORDER BY seq FOR UPDATE
), ${retire(pool)}`;

// Waits for nothing: a device or a prekey that somebody holds is left for the next time.
const retireOverAged = (pool: Pool) => `WITH device AS MATERIALIZED (
  SELECT device_number FROM devices WHERE device_number = ANY ($1::bigint[]) ORDER BY device_number FOR NO KEY UPDATE SKIP LOCKED
), chosen AS MATERIALIZED (
  SELECT p.device_number, p.seq FROM device d
   CROSS JOIN LATERAL (SELECT u.device_number, u.seq FROM ${pool.unclaimed} u
                        WHERE u.device_number = d.device_number AND u.added_at < now() - $2 * interval '1 millisecond'
                        ORDER BY u.seq FOR UPDATE SKIP LOCKED) p
   LIMIT $3
), ${retire(pool)}`;

const named = {
  oneTime: statement('prekeys_retire_one_time', retireNamed(oneTime)),
  kem: statement('prekeys_retire_kem', retireNamed(kem)),
};
const overAged = {
  oneTime: statement('prekeys_retire_over_aged_one_time', retireOverAged(oneTime)),
  kem: statement('prekeys_retire_over_aged_kem', retireOverAged(kem)),
};

export interface NamedPrekeys {
  readonly oneTime: readonly number[];
  readonly kem: readonly number[];
}

/**
 * Takes the named prekeys out of the pools and tells how many; those that are claimed, or unknown, are passed over. Waits for claims that
 * hold one: it is retired if they roll back. The device must be locked.
 */
export async function retirePrekeys(tx: Transaction, deviceNumber: bigint, ids: NamedPrekeys): Promise<PoolCounts> {
  const count = async (which: keyof NamedPrekeys) =>
    ids[which].length === 0 ? 0 : retiredOf(await tx.query<Retired>(named[which], [deviceNumber, ids[which]]));
  return { oneTime: await count('oneTime'), kem: await count('kem') };
}

const batch = 1_000;

/** Takes prekeys out of the pools of these devices that nobody claimed for longer than `maxAgeMs`, in batches, and tells how many. */
export async function retireOverAgedPrekeys(
  db: Database,
  deviceNumbers: readonly bigint[],
  maxAgeMs: number,
): Promise<PoolCounts> {
  const retired = { oneTime: 0, kem: 0 };
  for (const which of ['oneTime', 'kem'] as const)
    for (let more = true; more; ) {
      const count = retiredOf(await db.query<Retired>(overAged[which], [deviceNumbers, maxAgeMs, batch]));
      retired[which] += count;
      more = count === batch;
    }
  return retired;
}

interface Retired {
  readonly retired: bigint;
}

function retiredOf([row]: readonly Retired[]): number {
  return Number(row?.retired ?? 0);
}
