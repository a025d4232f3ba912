import type { StoreSessionResponse } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { sessionAborted } from '../refusals.ts';
import type { Writer } from '../store/conversations.ts';
import { addEpoch, decideSession, removeCandidate } from '../store/epochs.ts';
import type { CheckedSession } from './check-session.ts';

/**
 * Makes a stored session the session of its epoch. `moveConversation` creates or advances the conversation's row, or throws
 * when another session won. The decision is under the key that the reconciler's abort would take: one of the two stands.
 * Throws SESSION_ABORTED, SESSION_CONFLICT.
 */
export async function commitSession(
  tx: Transaction,
  session: CheckedSession,
  stored: StoreSessionResponse,
  by: Writer,
  moveConversation: () => Promise<void>,
): Promise<void> {
  // Candidate before decision, as the reconciler does: whoever has the candidate's row decides first.
  await removeCandidate(tx, session);
  const { outcome, decidedNow } = await decideSession(tx, session, 'COMMITTED', by);
  if (outcome === 'ABORTED') throw sessionAborted(session.sessionId);
  await moveConversation();
  if (!decidedNow)
    throw refuse('SESSION_CONFLICT', 'the session id is the session of another epoch', {
      metadata: { session_id: session.sessionId },
    });
  const { header } = session;
  await addEpoch(
    tx,
    {
      conversationId: session.conversationId,
      sessionId: session.sessionId,
      epoch: session.epoch,
      rosterVersion: header.rosterVersion,
      historyPolicy: header.historyPolicy,
      headerHash: session.headerHash,
      previousHeaderHash: session.epoch === 1n ? undefined : header.previousHeaderHash,
      initiator: session.initiator,
      envelopesWritten: stored.envelopesWritten,
      envelopesExpected: stored.envelopesExpected,
    },
    by,
  );
}
