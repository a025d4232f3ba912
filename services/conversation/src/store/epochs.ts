import type { HistoryPolicy } from '@keytrail/contracts';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { Writer } from './conversations.ts';

const upsertCandidate = statement(
  'candidate_upsert',
  `INSERT INTO candidates (conversation_id, session_id, request_id, caller_user_id, writer_build, trace_id)
   VALUES ($1, $2, $3, $4, $5, $6)
   ON CONFLICT (conversation_id, session_id) DO UPDATE
     SET attempt = candidates.attempt + 1, started_at = now(), request_id = excluded.request_id,
         caller_user_id = excluded.caller_user_id, writer_build = excluded.writer_build, trace_id = excluded.trace_id`,
);

const deleteCandidate = statement(
  'candidate_delete',
  'DELETE FROM candidates WHERE conversation_id = $1 AND session_id = $2',
);

const forgetCandidate = statement(
  'candidate_forget',
  'DELETE FROM candidates WHERE conversation_id = $1 AND session_id = $2 AND attempt = $3',
);

const oldCandidates = statement(
  'candidates_lock_old',
  `SELECT conversation_id, session_id, attempt, writer_build, trace_id FROM candidates
   WHERE started_at <= now() - $1 * interval '1 millisecond'
   ORDER BY started_at LIMIT $2 FOR UPDATE SKIP LOCKED`,
);

const decide = statement(
  'session_decide',
  `INSERT INTO session_decisions (conversation_id, session_id, outcome, writer_build, trace_id)
   VALUES ($1, $2, $3, $4, $5) ON CONFLICT (conversation_id, session_id) DO NOTHING RETURNING outcome`,
);

const readDecision = statement(
  'session_decision_read',
  'SELECT outcome FROM session_decisions WHERE conversation_id = $1 AND session_id = $2',
);

const insertEpoch = statement(
  'epoch_insert',
  `INSERT INTO epochs (conversation_id, epoch, session_id, roster_version, header_hash, previous_header_hash,
     initiator_user_id, initiator_device_id, envelopes_written, envelopes_expected, writer_build, trace_id, history_policy)
   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
);

const findSession = statement(
  'epoch_of_session',
  'SELECT conversation_id, epoch, header_hash, history_policy FROM epochs WHERE conversation_id = $1 AND session_id = $2',
);

/** A session of a conversation. */
export interface SessionKey {
  readonly conversationId: string;
  readonly sessionId: string;
}

export type Outcome = 'COMMITTED' | 'ABORTED';

/** A session that was to be committed, as the reconciler finds it. */
export interface OldCandidate extends SessionKey {
  readonly attempt: number;
  readonly writerBuild: string;
  readonly traceId: string;
}

/** Records the intent to store and commit a session; a repetition counts as a further attempt. */
export async function recordCandidate(
  tx: Transaction,
  { conversationId, sessionId }: SessionKey,
  request: { readonly requestId: string; readonly userId: string },
  by: Writer,
): Promise<void> {
  await tx.query(upsertCandidate, [conversationId, sessionId, request.requestId, request.userId, by.build, by.traceId]);
}

export async function removeCandidate(tx: Transaction, { conversationId, sessionId }: SessionKey): Promise<void> {
  await tx.query(deleteCandidate, [conversationId, sessionId]);
}

/** Removes a candidate unless it has been attempted again since it was read. */
export async function forgetCandidateAttempt(db: Queryable, candidate: OldCandidate): Promise<void> {
  await db.query(forgetCandidate, [candidate.conversationId, candidate.sessionId, candidate.attempt]);
}

/** Locks up to `limit` candidates that are older than `ageMs` by the database's clock, skipping those that others hold. */
export async function lockOldCandidates(tx: Transaction, ageMs: number, limit: number): Promise<OldCandidate[]> {
  const rows = await tx.query<{
    conversation_id: string;
    session_id: string;
    attempt: number;
    writer_build: string;
    trace_id: string;
  }>(oldCandidates, [ageMs, limit]);
  return rows.map((row) => ({
    conversationId: row.conversation_id,
    sessionId: row.session_id,
    attempt: row.attempt,
    writerBuild: row.writer_build,
    traceId: row.trace_id,
  }));
}

/** Decides what becomes of a session, unless it is decided; returns what stands. Waits for a decision that is being made. */
export async function decideSession(
  tx: Transaction,
  session: SessionKey,
  outcome: Outcome,
  by: Writer,
): Promise<{ readonly outcome: Outcome; readonly decidedNow: boolean }> {
  const { conversationId, sessionId } = session;
  const rows = await tx.query(decide, [conversationId, sessionId, outcome, by.build, by.traceId]);
  if (rows.length > 0) return { outcome, decidedNow: true };
  const standing = await decisionOn(tx, session);
  if (!standing) throw new Error(`the decision on session ${sessionId} vanished`);
  return { outcome: standing, decidedNow: false };
}

export async function decisionOn(
  db: Queryable,
  { conversationId, sessionId }: SessionKey,
): Promise<Outcome | undefined> {
  const [row] = await db.query<{ outcome: Outcome }>(readDecision, [conversationId, sessionId]);
  return row?.outcome;
}

/** An epoch with its session. */
export interface NewEpoch extends SessionKey {
  readonly epoch: bigint;
  readonly rosterVersion: bigint;
  readonly historyPolicy: HistoryPolicy;
  readonly headerHash: Uint8Array;
  readonly previousHeaderHash?: Uint8Array | undefined;
  readonly initiator: { readonly userId: string; readonly deviceId: string };
  readonly envelopesWritten: number;
  readonly envelopesExpected: number;
}

export async function addEpoch(tx: Transaction, epoch: NewEpoch, by: Writer): Promise<void> {
  await tx.query(insertEpoch, [
    epoch.conversationId,
    epoch.epoch,
    epoch.sessionId,
    epoch.rosterVersion,
    epoch.headerHash,
    epoch.previousHeaderHash ?? null,
    epoch.initiator.userId,
    epoch.initiator.deviceId,
    epoch.envelopesWritten,
    epoch.envelopesExpected,
    by.build,
    by.traceId,
    epoch.historyPolicy,
  ]);
}

/** A session that won its epoch. */
export interface CommittedSession extends SessionKey {
  readonly epoch: bigint;
  /** As the session's header says. */
  readonly historyPolicy: HistoryPolicy;
  /** 32 bytes, SHA-256. */
  readonly headerHash: Uint8Array;
}

export async function findCommittedSession(
  db: Queryable,
  { conversationId, sessionId }: SessionKey,
): Promise<CommittedSession | undefined> {
  const [row] = await db.query<{
    conversation_id: string;
    epoch: bigint;
    header_hash: Buffer;
    history_policy: HistoryPolicy;
  }>(findSession, [conversationId, sessionId]);
  return (
    row && {
      conversationId: row.conversation_id,
      sessionId,
      epoch: row.epoch,
      historyPolicy: row.history_policy,
      headerHash: row.header_hash,
    }
  );
}
