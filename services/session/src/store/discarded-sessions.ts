import { isCheckViolation, type Queryable, statement, type Transaction } from '@keytrail/storage';

const bury = statement(
  'bury_session',
  'INSERT INTO discarded_sessions (conversation_id, session_id) VALUES ($1, $2) ON CONFLICT DO NOTHING',
);
const deleteSession = statement(
  'delete_session',
  'DELETE FROM sessions WHERE conversation_id = $1 AND session_id = $2 RETURNING true AS discarded',
);
const purge = statement(
  'purge_discarded_sessions',
  `WITH gone AS (
     DELETE FROM discarded_sessions WHERE (conversation_id, session_id) IN (
       SELECT conversation_id, session_id FROM discarded_sessions WHERE discarded_at < now() - interval '7 days' LIMIT $1)
     RETURNING 1)
   SELECT count(*)::integer AS purged FROM gone`,
);

/**
 * Deletes a session with its envelopes and withholdings, and sees to it that no later call stores it. Whether there was one. Waits for a
 * call that is storing it.
 */
export async function discardSession(tx: Transaction, conversationId: string, sessionId: string): Promise<boolean> {
  await tx.query(bury, [conversationId, sessionId]);
  return (await tx.query(deleteSession, [conversationId, sessionId])).length > 0;
}

/** The database refused to store a session that was discarded. */
export function wasDiscarded(error: unknown): boolean {
  return isCheckViolation(error, 'sessions_not_discarded');
}

/** Forgets what was discarded so long ago that no call can be on its way; how many there were. */
export async function purgeDiscardedSessions(db: Queryable, most: number): Promise<number> {
  return (await db.query<{ purged: number }>(purge, [most]))[0]?.purged ?? 0;
}
