import { isCheckViolation, type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { KeyRequest } from '../domain/key-request.ts';
import { columns, type Row as KeyRequestRow, keyRequestOf } from './key-requests.ts';

const isErased = statement(
  'erased_users_among',
  'SELECT DISTINCT user_id FROM erasures WHERE user_id = ANY($1::text[]) ORDER BY user_id',
);

/** Those of the users of whom nothing is written any more. */
export async function erasedAmong(db: Queryable, userIds: readonly string[]): Promise<string[]> {
  return (await db.query<{ user_id: string }>(isErased, [userIds])).map((row) => row.user_id);
}

/** The database refused to write a row of a user who is erased. */
export function isOfErasedUser(error: unknown): boolean {
  return isCheckViolation(error, 'not_of_erased_users');
}

const lockOpen = statement(
  'session_erasure_lock_open_requests',
  `SELECT ${columns} FROM key_requests WHERE user_id = $1 AND state IN ('WAITING_FOR_HOLDER', 'OFFERED')
   ORDER BY key_request_id LIMIT $2 FOR UPDATE`,
);

/** Open key requests of the user's devices, locked. */
export async function lockOpenRequestsOf(tx: Transaction, userId: string, most: number): Promise<KeyRequest[]> {
  return (await tx.query<KeyRequestRow>(lockOpen, [userId, most])).map(keyRequestOf);
}

// Requests are locked in the order of their keys, as everywhere, before their offers go; those that stood on such an offer go on now.
const deleteOffers = statement(
  'session_erasure_delete_offers',
  `WITH asked AS (
     SELECT key_request_id FROM key_requests WHERE key_request_id IN (
       SELECT key_request_id FROM offers WHERE user_id = $1 ORDER BY key_request_id LIMIT $2)
     ORDER BY key_request_id FOR UPDATE),
   gone AS (DELETE FROM offers o USING asked a WHERE o.key_request_id = a.key_request_id AND o.user_id = $1
     RETURNING o.key_request_id),
   hurried AS (
     UPDATE key_requests SET next_attempt_at = now(), version = version + 1
     WHERE state IN ('WAITING_FOR_HOLDER', 'OFFERED') AND key_request_id IN (SELECT key_request_id FROM gone))
   SELECT count(*)::integer AS erased FROM gone`,
);

// Every session is looked at once, by its key, and held before its envelopes are, as DiscardSession does it: neither waits for the other with
// what the other needs. Envelopes that the user sealed for others stay: they are how those others decrypt. Only a
// device that has the key seals, so that they are looked for in sessions that the user made or had an envelope of.
const walk = statement(
  'session_erasure_walk_sessions',
  `WITH page AS MATERIALIZED (
     SELECT conversation_id, session_id, initiator_user_id = $2 AS initiated FROM sessions
     WHERE (conversation_id, session_id) > (
       (SELECT coalesce(walked_conversation_id, '00000000-0000-0000-0000-000000000000') FROM erasures WHERE erasure_id = $1),
       (SELECT coalesce(walked_session_id, '') FROM erasures WHERE erasure_id = $1))
     ORDER BY conversation_id, session_id LIMIT $3 FOR KEY SHARE),
   envelopes_gone AS (
     DELETE FROM envelopes e USING page p
     WHERE e.conversation_id = p.conversation_id AND e.session_id = p.session_id AND e.user_id = $2 RETURNING 1),
   withholdings_gone AS (
     DELETE FROM withholdings w USING page p
     WHERE w.conversation_id = p.conversation_id AND w.session_id = p.session_id AND w.user_id = $2 RETURNING 1),
   theirs AS (
     SELECT p.* FROM page p WHERE p.initiated OR EXISTS (SELECT FROM envelopes own
       WHERE own.conversation_id = p.conversation_id AND own.session_id = p.session_id AND own.user_id = $2)),
   walked AS (
     UPDATE erasures SET walked_conversation_id = last.conversation_id, walked_session_id = last.session_id
     FROM (SELECT conversation_id, session_id FROM page ORDER BY conversation_id DESC, session_id DESC LIMIT 1) AS last
     WHERE erasure_id = $1)
   SELECT (SELECT count(*)::integer FROM page) AS sessions,
     (SELECT count(*)::integer FROM page WHERE initiated) AS sessions_kept,
     (SELECT count(*)::integer FROM envelopes_gone) AS envelopes,
     (SELECT count(*)::integer FROM theirs JOIN envelopes e USING (conversation_id, session_id)
       WHERE e.sealer_user_id = $2 AND e.user_id <> $2) AS envelopes_kept,
     (SELECT count(*)::integer FROM withholdings_gone) AS withholdings`,
);

export interface WalkedSessions {
  readonly sessions: number;
  readonly sessions_kept: number;
  readonly envelopes: number;
  readonly envelopes_kept: number;
  readonly withholdings: number;
}

/** Goes on over the next sessions, and takes away what was sealed to the user or withheld from the user. */
export async function walkSessions(
  tx: Transaction,
  { erasureId, userId }: { readonly erasureId: string; readonly userId: string },
  most: number,
): Promise<WalkedSessions> {
  const [row] = await tx.query<WalkedSessions>(walk, [erasureId, userId, most]);
  if (!row) throw new Error('counts without a row');
  return row;
}

const deleteRequests = statement(
  'session_erasure_delete_key_requests',
  `WITH gone AS (DELETE FROM key_requests WHERE key_request_id IN (
     SELECT key_request_id FROM key_requests WHERE user_id = $1 ORDER BY key_request_id LIMIT $2) RETURNING 1)
   SELECT count(*)::integer AS erased FROM gone`,
);
// Callers are devices, written as user, space, device (domain/device.ts), in the order of their bytes: “!” comes right after the space.
const deleteRequestIds = statement(
  'session_erasure_delete_request_ids',
  `WITH gone AS (DELETE FROM request_ids WHERE (caller, request_id) IN (
     SELECT caller, request_id FROM request_ids WHERE caller > $1 || ' ' AND caller < $1 || '!' LIMIT $2) RETURNING 1)
   SELECT count(*)::integer AS erased FROM gone`,
);
const countRevoked = statement(
  'session_erasure_count_revoked_devices',
  'SELECT count(*)::integer AS kept FROM revoked_devices WHERE user_id = $1',
);
const forgetRevoked = statement(
  'session_erasure_forget_revoked_devices',
  'DELETE FROM revoked_devices WHERE user_id = ANY($1::text[])',
);

type Deletion = (tx: Transaction, userId: string, most: number) => Promise<number>;

function deletion(of: typeof deleteOffers): Deletion {
  return async (tx, userId, most) => (await tx.query<{ erased: number }>(of, [userId, most]))[0]?.erased ?? 0;
}

export const deleteOffersTo = deletion(deleteOffers);
/** Their envelopes must be gone. */
export const deleteRequestsOf = deletion(deleteRequests);
export const deleteRequestIdsOf = deletion(deleteRequestIds);

export async function countRevokedDevices(tx: Transaction, userId: string): Promise<number> {
  return (await tx.query<{ kept: number }>(countRevoked, [userId]))[0]?.kept ?? 0;
}

export async function forgetRevokedDevices(tx: Transaction, userIds: readonly string[]): Promise<void> {
  await tx.query(forgetRevoked, [userIds]);
}
