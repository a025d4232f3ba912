import { type Database, statement, type Transaction } from '@keytrail/storage';
import { forgetting } from './forgotten-claims.ts';

type Counts = Readonly<Record<string, number>>;

interface Batch {
  readonly erased: Counts;
  readonly more: boolean;
}

const lock = statement(
  'user_erasure_lock',
  'SELECT user_id FROM erasures WHERE erasure_id = $1 AND completed_at IS NULL FOR UPDATE',
);
const count = statement(
  'user_erasure_count',
  `INSERT INTO erasure_counts AS c (erasure_id, service, kind, erased) VALUES ($1, 'identity-keys', $2, $3)
   ON CONFLICT (erasure_id, service, kind) DO UPDATE SET erased = c.erased + excluded.erased`,
);

// Callers are written as in rpc/caller-key.ts.
const claimsBy = statement('user_erasure_claims_by', forgetting("starts_with(caller, 'device:' || $1::text || '/')"));
const requestIds = statement(
  'user_erasure_request_ids',
  `WITH gone AS (DELETE FROM request_ids WHERE (caller, request_id) IN (
     SELECT caller, request_id FROM request_ids WHERE starts_with(caller, 'device:' || $1::text || '/') LIMIT $2) RETURNING 1)
   SELECT count(*) AS erased FROM gone`,
);
// A claim that others made keeps what it says of everybody else, for repetitions. Where the user stood it says "no such device".
const claimsNaming = statement(
  'user_erasure_claims_naming',
  `WITH mine AS MATERIALIZED (SELECT array_agg(device_number) AS numbers FROM devices WHERE user_id = $1),
   named AS MATERIALIZED (
     SELECT c.caller, c.claim_id FROM claims c, mine m WHERE c.device_numbers && m.numbers OR $1 = ANY (c.user_ids)
     LIMIT $2 FOR UPDATE OF c),
   blanked AS (
     UPDATE claims c SET user_ids = array_replace(c.user_ids, $1, ''),
       (device_numbers, signed_prekey_ids, last_resort_prekey_ids, one_time_prekey_ids, kem_prekey_ids) = (
         SELECT coalesce(array_agg(CASE WHEN NOT r.gone THEN r.device_number END ORDER BY r.position), '{}'),
                coalesce(array_agg(CASE WHEN NOT r.gone THEN r.signed_prekey_id END ORDER BY r.position), '{}'),
                coalesce(array_agg(CASE WHEN NOT r.gone THEN r.last_resort_prekey_id END ORDER BY r.position), '{}'),
                coalesce(array_agg(CASE WHEN NOT r.gone THEN r.one_time_prekey_id END ORDER BY r.position), '{}'),
                coalesce(array_agg(CASE WHEN NOT r.gone THEN r.kem_prekey_id END ORDER BY r.position), '{}')
           FROM (SELECT u.*, coalesce(u.device_number = ANY ((SELECT numbers FROM mine)::bigint[]), false) AS gone
                   FROM unnest(c.device_numbers, c.signed_prekey_ids, c.last_resort_prekey_ids, c.one_time_prekey_ids, c.kem_prekey_ids)
                        WITH ORDINALITY AS u (device_number, signed_prekey_id, last_resort_prekey_id, one_time_prekey_id, kem_prekey_id, position)) r)
       FROM named n WHERE c.caller = n.caller AND c.claim_id = n.claim_id RETURNING 1)
   SELECT count(*) AS erased FROM blanked`,
);
const permissions = statement(
  'user_erasure_claim_permissions',
  `WITH gone AS (DELETE FROM claim_permissions WHERE user_id = $1 OR target_user_id = $1 RETURNING 1)
   SELECT count(*) AS erased FROM gone`,
);
const nextDevice = statement(
  'user_erasure_next_device',
  'SELECT device_number FROM devices WHERE user_id = $1 ORDER BY device_number LIMIT 1',
);
const prekeys = (table: string) => `DELETE FROM ${table} WHERE (device_number, key_id) IN (
     SELECT device_number, key_id FROM ${table} WHERE device_number = $1 ORDER BY key_id LIMIT $2) RETURNING 1`;
const oneTimePrekeys = statement(
  'user_erasure_one_time_prekeys',
  `WITH gone AS (${prekeys('one_time_prekeys')}) SELECT count(*) AS erased FROM gone`,
);
const kemPrekeys = statement(
  'user_erasure_kem_prekeys',
  `WITH gone AS (${prekeys('one_time_kem_prekeys')}) SELECT count(*) AS erased FROM gone`,
);
const rowsOfDevice = ['low_prekey_notices', 'drain_notices', 'signed_prekeys', 'last_resort_prekeys', 'devices'].map(
  (table) =>
    [
      table,
      statement(
        `user_erasure_${table}`,
        `WITH gone AS (DELETE FROM ${table} WHERE device_number = $1 RETURNING 1) SELECT count(*) AS erased FROM gone`,
      ),
    ] as const,
);
// Each names rows of the next ones; the last says that the others may go. Revocations stay for those who read their list late: they go when
// the erasure forgets its user (trigger).
const rowsOfUser = ['recoveries', 'device_log', 'root_keys', 'users'].map(
  (table) =>
    [
      table,
      statement(
        `user_erasure_${table}`,
        `WITH gone AS (DELETE FROM ${table} WHERE user_id = $1 RETURNING 1) SELECT count(*) AS erased FROM gone`,
      ),
    ] as const,
);

const parts: readonly ((tx: Transaction, userId: string, most: number) => Promise<Batch>)[] = [
  async (tx, userId, most) => {
    const [row] = await tx.query<{ found: bigint; claims: bigint }>(claimsBy, [userId, most]);
    const [found, claims] = [Number(row?.found), Number(row?.claims)];
    return { erased: { claims }, more: found > claims || found === most };
  },
  async (tx, userId, most) => {
    const claims_blanked = await erasedBy(tx, claimsNaming, [userId, most]);
    return { erased: { claims_blanked }, more: claims_blanked === most };
  },
  async (tx, userId, most) => {
    const request_ids = await erasedBy(tx, requestIds, [userId, most]);
    return { erased: { request_ids }, more: request_ids === most };
  },
  async (tx, userId) => ({
    erased: { claim_permissions: await erasedBy(tx, permissions, [userId]) },
    more: false,
  }),
  eraseOfNextDevice,
  async (tx, userId) => ({ erased: await eraseAll(tx, rowsOfUser, userId), more: false }),
];

/**
 * Deletes what is left of an erased user, part by part, in batches of about `most` rows that commit together with what they count. Killed
 * anywhere, it goes on where it was when it is called again; replicas take turns. `proceed` is asked between batches. False when it was
 * stopped, or the erasure has ended.
 */
export async function eraseOwnRows(
  db: Database,
  erasureId: string,
  { most, proceed }: { readonly most: number; proceed(): boolean },
): Promise<boolean> {
  for (const part of parts) {
    for (let more = true; more; ) {
      if (!proceed()) return false;
      const batch = await db.transaction(async (tx) => {
        const [erasure] = await tx.query<{ user_id: string }>(lock, [erasureId]);
        if (!erasure) return undefined;
        const done = await part(tx, erasure.user_id, most);
        for (const [kind, erased] of Object.entries(done.erased)) tx.send(count, [erasureId, kind, erased]);
        return done;
      });
      if (!batch) return false;
      more = batch.more;
    }
  }
  return true;
}

async function eraseOfNextDevice(tx: Transaction, userId: string, most: number): Promise<Batch> {
  const [device] = await tx.query<{ device_number: bigint }>(nextDevice, [userId]);
  if (!device) return { erased: {}, more: false };
  const { device_number } = device;
  const one_time_prekeys = await erasedBy(tx, oneTimePrekeys, [device_number, most]);
  const one_time_kem_prekeys = await erasedBy(tx, kemPrekeys, [device_number, most]);
  const rest = one_time_prekeys < most && one_time_kem_prekeys < most;
  return {
    erased: {
      one_time_prekeys,
      one_time_kem_prekeys,
      ...(rest && (await eraseAll(tx, rowsOfDevice, device_number))),
    },
    more: true,
  };
}

async function eraseAll(tx: Transaction, tables: typeof rowsOfUser, of: string | bigint): Promise<Counts> {
  const erased: Record<string, number> = {};
  for (const [table, deletion] of tables) erased[table] = await erasedBy(tx, deletion, [of]);
  return erased;
}

async function erasedBy(tx: Transaction, of: typeof requestIds, values: readonly unknown[]): Promise<number> {
  return Number((await tx.query<{ erased: bigint }>(of, values))[0]?.erased);
}
