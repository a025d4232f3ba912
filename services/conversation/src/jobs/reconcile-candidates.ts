import { type Rounds, startRounds } from '@keytrail/events';
import { keepTrace, type Logger, SpanKind, withSpan } from '@keytrail/telemetry';
import type { Parts } from '../parts.ts';
import { decideSession, forgetCandidateAttempt, lockOldCandidates, type OldCandidate } from '../store/epochs.ts';
import { writerOf } from '../writer.ts';

const batch = 50;

/** What one round did. */
export interface Reconciled {
  /** Given up: tombstone written, session discarded, candidate forgotten. */
  readonly aborted: number;
  /** Committed after all; only the candidate was left over. */
  readonly committed: number;
  /** Given up, but not discarded yet: the next round tries again. */
  readonly failed: number;
}

/**
 * Gives up candidates that are older than `ageMs`. The tombstone takes the key that their commit would insert, and is
 * committed before the session is discarded: a late commit finds it and ends with SESSION_ABORTED. Any number of
 * replicas may run this at once.
 */
export async function reconcileCandidates(
  parts: Pick<Parts, 'db' | 'sessions' | 'writerBuild'>,
  ageMs: number,
  log: Logger,
): Promise<Reconciled> {
  const by = writerOf(parts);
  const decided = await parts.db.transaction(async (tx) => {
    const old = await lockOldCandidates(tx, ageMs, batch);
    const outcomes: (OldCandidate & { readonly outcome: string })[] = [];
    for (const candidate of old) {
      const { outcome } = await decideSession(tx, candidate, 'ABORTED', by);
      outcomes.push({ ...candidate, outcome });
    }
    return outcomes;
  });

  const done = { aborted: 0, committed: 0, failed: 0 };
  for (const candidate of decided) {
    const { conversationId, sessionId, writerBuild, traceId, outcome } = candidate;
    if (outcome === 'COMMITTED') {
      await forgetCandidateAttempt(parts.db, candidate);
      done.committed++;
      continue;
    }
    keepTrace('session_aborted');
    try {
      const { discarded } = await parts.sessions.discardSession({ conversationId, sessionId });
      await forgetCandidateAttempt(parts.db, candidate);
      done.aborted++;
      log.warn(
        { conversationId, sessionId, discarded, candidateBuild: writerBuild, candidateTraceId: traceId },
        'a session that was never committed was given up',
      );
    } catch (error) {
      done.failed++;
      log.warn({ err: error, conversationId, sessionId }, 'a session that was given up could not be discarded yet');
    }
  }
  return done;
}

/** Reconciles again and again; several batches at once when there is much to give up. */
export function startReconciling(reconcile: () => Promise<Reconciled>, log: Logger, everyMs: number): Rounds {
  return startRounds({
    what: 'the reconciliation of candidates',
    everyMs,
    log,
    async round() {
      const { aborted, committed } = await withSpan('reconcile candidates', { kind: SpanKind.INTERNAL }, reconcile);
      return aborted + committed === batch;
    },
  });
}
