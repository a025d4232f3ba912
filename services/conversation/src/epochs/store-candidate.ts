import type { ReasonName, StoreSessionResponse } from '@keytrail/contracts';
import { readRefusal, refuse } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { sessionAborted } from '../refusals.ts';
import type { Writer } from '../store/conversations.ts';
import { decisionOn, recordCandidate } from '../store/epochs.ts';
import type { CheckedSession } from './check-session.ts';

/**
 * Records the intent to commit a session, then stores it with the service session: from then on either the commit or the
 * reconciler decides it. Idempotent by conversation and session id. Throws SESSION_ABORTED when the reconciler was first,
 * and what StoreSession throws.
 */
export async function storeCandidate(
  parts: Parts,
  session: CheckedSession,
  request: { readonly requestId: string; readonly userId: string },
  by: Writer,
): Promise<StoreSessionResponse> {
  await parts.db.transaction(async (tx) => {
    await recordCandidate(tx, session, request, by);
    // Read after the candidate's row is ours: the reconciler decides while it holds that row.
    if ((await decisionOn(tx, session)) === 'ABORTED') throw sessionAborted(session.sessionId);
  });
  await parts.atFaultPoint('conversation.after-candidate');

  const { initiator } = session;
  const stored = await parts.sessions
    .storeSession({
      conversationId: session.conversationId,
      initiator: { userId: initiator.userId, deviceId: initiator.deviceId },
      session: session.upload,
      rosterDevices: session.rosterDevices,
    })
    .catch((error: unknown) => {
      throw inTheCallersWords(error, session.field);
    });
  const expected = session.upload.envelopes.length;
  if (stored.envelopesWritten !== expected || stored.envelopesExpected !== expected)
    throw new Error(
      `session wrote ${stored.envelopesWritten} envelopes and expected ${stored.envelopesExpected} where ${expected} were sent`,
    );
  await parts.atFaultPoint('conversation.after-store-session');
  return stored;
}

const namesAField: ReadonlySet<string> = new Set<ReasonName>([
  'INVALID_FIELD',
  'SIGNATURE_INVALID',
  'CERTIFICATE_INVALID',
]);

/** What session finds wrong with a field of the upload, in the words of the caller's request; the chain passes on the rest. */
function inTheCallersWords(error: unknown, field: string): unknown {
  const { reason, message, metadata, fields } = readRefusal(error);
  if (!namesAField.has(reason)) return error;
  const place = (path: string) => path.replace(/^session(?=\.|$)/, field);
  return refuse(reason as ReasonName, message.replace(/^session(?=\.)/, field), {
    metadata: metadata.field === undefined ? metadata : { ...metadata, field: place(metadata.field) },
    fields: fields.map((problem) => ({ ...problem, field: place(problem.field) })),
    cause: error,
  });
}
