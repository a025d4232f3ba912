import { type Database, statement, type Transaction } from '@keytrail/storage';
import { forgetting } from './forgotten-claims.ts';

type Counts = Readonly<Record<string, number>>;

interface Batch {
  readonly erased: Counts;
  /** `held`: what is left is held by others. */
  readonly next: 'more' | 'done' | 'held';
}

const lock = statement(
  'user_erasure_lock',
  'SELECT user_id FROM erasures WHERE erasure_id = $1 AND completed_at IS NULL FOR NO KEY UPDATE SKIP LOCKED',
);
// Shorter than the time after which PostgreSQL looks for deadlocks: an erasure gives up what it holds before, and is tried again.
const waitLittle = statement('user_erasure_wait_little', `SET LOCAL lock_timeout = '200ms'`);
const count = statement(
  'user_erasure_count',
  `INSERT INTO erasure_counts AS c (erasure_id, service, kind, erased) VALUES ($1, 'identity-keys', $2, $3)
   ON CONFLICT (erasure_id, service, kind) DO UPDATE SET erased = c.erased + excluded.erased`,
);

// Callers are written as in rpc/caller-key.ts, and compared bytewise: "0" comes after "/".
const byUser = "caller >= 'device:' || $1::text || '/' AND caller < 'device:' || $1::text || '0'";
const claimsBy = statement('user_erasure_claims_by', forgetting(byUser, 'caller, claim_id'));
const claimsByLeft = statement('user_erasure_claims_by_left', `SELECT FROM claims WHERE ${byUser} LIMIT 1`);
const requestIds = statement(
  'user_erasure_request_ids',
  `WITH gone AS (DELETE FROM request_ids WHERE (caller, request_id) IN (
     SELECT caller, request_id FROM request_ids WHERE ${byUser} ORDER BY caller, request_id LIMIT $2) RETURNING 1)
   SELECT count(*) AS erased FROM gone`,
);
/** Devices in the claims that one statement looks at. */
const devicesAtOnce = 20_000;
// The next $3 claims in the order of time. One that others made keeps what it says of everybody else, for repetitions; where the user stood
// it says "no such device". What somebody else holds is looked at again.
const claimsNaming = statement(
  'user_erasure_claims_naming',
  `WITH mine AS MATERIALIZED (SELECT array_agg(device_number) AS numbers FROM devices WHERE user_id = $1),
   page AS MATERIALIZED (
     SELECT caller, claim_id, claimed_at, device_numbers, user_ids FROM claims
      WHERE claimed_at > (SELECT claims_seen_to FROM erasures WHERE erasure_id = $2)
      ORDER BY claimed_at FETCH FIRST ($3) ROWS WITH TIES),
   looked_at AS MATERIALIZED (
     SELECT * FROM (SELECT *, coalesce(sum(cardinality(device_numbers)) OVER (
                       ORDER BY claimed_at GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before FROM page) p
      WHERE before < ${devicesAtOnce}),
   naming AS MATERIALIZED (
     SELECT l.caller, l.claim_id FROM looked_at l, mine m
      WHERE (l.device_numbers && m.numbers OR $1 = ANY (l.user_ids)) AND NOT (${byUser})),
   named AS MATERIALIZED (
     SELECT c.caller, c.claim_id FROM naming n JOIN claims c ON c.caller = n.caller AND c.claim_id = n.claim_id FOR UPDATE OF c SKIP LOCKED),
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
       FROM named n WHERE c.caller = n.caller AND c.claim_id = n.claim_id RETURNING 1),
   outcome AS MATERIALIZED (
     SELECT (SELECT count(*) FROM looked_at) AS seen, (SELECT count(*) FROM named) < (SELECT count(*) FROM naming) AS held,
            (SELECT max(claimed_at) FROM looked_at) AS seen_to),
   moved AS (
     UPDATE erasures e SET claims_seen_to = o.seen_to FROM outcome o WHERE e.erasure_id = $2 AND o.seen > 0 AND NOT o.held)
   SELECT seen, held, (SELECT count(*) FROM blanked) AS blanked FROM outcome`,
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

interface Of {
  readonly erasureId: string;
  readonly userId: string;
  readonly most: number;
}

// What is made by calls that may have been on their way goes last but for the user.
const parts: readonly ((tx: Transaction, of: Of) => Promise<Batch>)[] = [
  async (tx, { userId, erasureId, most }) => {
    const [row] = await tx.query<{ seen: bigint; held: boolean; blanked: bigint }>(claimsNaming, [
      userId,
      erasureId,
      most,
    ]);
    const next = row?.held ? 'held' : row?.seen === 0n ? 'done' : 'more';
    return { erased: { claims_blanked: Number(row?.blanked) }, next };
  },
  eraseOfNextDevice,
  async (tx, { userId }) => ({
    erased: { claim_permissions: await erasedBy(tx, permissions, [userId]) },
    next: 'done',
  }),
  async (tx, { userId, most }) => {
    const claims = Number((await tx.query<{ claims: bigint }>(claimsBy, [userId, most]))[0]?.claims);
    if (claims > 0) return { erased: { claims }, next: 'more' };
    const left = await tx.query(claimsByLeft, [userId]);
    return { erased: { claims }, next: left.length > 0 ? 'held' : 'done' };
  },
  async (tx, { userId, most }) => {
    const request_ids = await erasedBy(tx, requestIds, [userId, most]);
    return { erased: { request_ids }, next: request_ids === most ? 'more' : 'done' };
  },
  async (tx, { userId }) => ({ erased: await eraseAll(tx, rowsOfUser, userId), next: 'done' }),
];

/** How far a turn of an erasure came: to its end; not to it; or to what others hold, another replica included. */
export type Turn = 'ended' | 'interrupted' | 'held';

/**
 * Deletes what is left of an erased user, part by part, in batches of about `most` rows that commit together with what they count, and with how
 * far the claims were looked through. Killed anywhere, it goes on where it was when it is called again; replicas take turns. It waits
 * 200 ms for what others hold, then throws. `proceed` is asked between batches.
 */
export async function eraseOwnRows(
  db: Database,
  erasureId: string,
  { most, proceed }: { readonly most: number; proceed(): boolean },
): Promise<Turn> {
  for (const part of parts) {
    for (let more = true; more; ) {
      if (!proceed()) return 'interrupted';
      const batch = await db.transaction(async (tx) => {
        tx.send(waitLittle, []);
        const [erasure] = await tx.query<{ user_id: string }>(lock, [erasureId]);
        if (!erasure) return undefined;
        const done = await part(tx, { erasureId, userId: erasure.user_id, most });
        for (const [kind, erased] of Object.entries(done.erased)) tx.send(count, [erasureId, kind, erased]);
        return done;
      });
      if (!batch || batch.next === 'held') return 'held';
      more = batch.next === 'more';
    }
  }
  return 'ended';
}

async function eraseOfNextDevice(tx: Transaction, { userId, most }: Of): Promise<Batch> {
  const [device] = await tx.query<{ device_number: bigint }>(nextDevice, [userId]);
  if (!device) return { erased: {}, next: 'done' };
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
    next: 'more',
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
