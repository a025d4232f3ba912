import { randomUUID } from 'node:crypto';
import { SessionOperatorService } from '@keytrail/contracts';
import { type Call, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { currentTraceparent } from '@keytrail/telemetry';
import { openKeyRequest } from '../../dispatch-key-request.ts';
import { mayRequestKey } from '../../domain/explain-miss.ts';
import { isOpen, type KeyRequest, newKeyRequest } from '../../domain/key-request.ts';
import { explain, gatherFacts } from '../../miss.ts';
import type { Parts } from '../../parts.ts';
import { notEntitled, peerUnavailable, userErased } from '../../refusals.ts';
import { isOfErasedUser } from '../../store/erasures.ts';
import { isHit, readInitialSession } from '../../store/initial-session.ts';
import { readOpenKeyRequest } from '../../store/key-requests.ts';
import { audited } from './audited.ts';
import { seenKeyRequest, viewKeyRequest } from './key-request-view.ts';

/**
 * Opens a request anew that ended without a key. The new one has no offers, so that everybody is asked again; the dispatcher takes its first
 * step at once. The requester's right is asked for here too: an operator cannot give one.
 */
export function replayKeyRequest(parts: Parts): Rpc {
  const { db } = parts;
  return unary(SessionOperatorService.method.replayKeyRequest, {
    allow: ['operator'],
    async handle({ keyRequestId }, call) {
      return audited(db, call, { action: 'replay_key_request', keyRequestId, note: '' }, async (recordDone) => {
        const { request } = await seenKeyRequest(db, keyRequestId);
        if (!isOpen(request.state)) await checkNeeded(parts, request, call);
        return db
          .transaction(async (tx) => {
            const opened = isOpen(request.state) ? request : await openOrFind(parts, tx, request);
            await recordDone(tx, request.requester);
            return { keyRequest: await viewKeyRequest(tx, opened.keyRequestId) };
          })
          .catch((error: unknown) => {
            throw isOfErasedUser(error) ? userErased(request.requester.userId) : error;
          });
      });
    },
  });
}

async function checkNeeded(parts: Parts, request: KeyRequest, call: Call): Promise<void> {
  const { requester, conversationId, sessionId } = request;
  const facts = await gatherFacts(parts, request, requester, call);
  const { entitlement, deviceLists } = facts.answers;
  if (!entitlement.known) throw peerUnavailable(entitlement.peer);
  if (!deviceLists.known) throw peerUnavailable(deviceLists.peer);
  const miss = explain(parts, request, requester, facts);
  if (miss.kind === 'miss' && !mayRequestKey(miss.cause)) throw notEntitled('requester', miss.cause);
  const row = await readInitialSession(parts.db, conversationId, sessionId, requester.userId, requester.deviceId);
  if (request.state === 'FULFILLED' || (request.kind === 'MISSING' && row && isHit(row)))
    throw refuse('KEY_REQUEST_NOT_NEEDED', 'the key was delivered', { metadata: { kind: request.kind } });
}

async function openOrFind(parts: Parts, tx: Transaction, ended: KeyRequest): Promise<KeyRequest> {
  const now = new Date();
  const fresh = newKeyRequest({
    ...ended,
    keyRequestId: randomUUID(),
    requestedAt: now,
    expiresAt: new Date(now.getTime() + parts.config.expiryMs),
    traceparent: currentTraceparent(),
  });
  const { config: policy, writerBuild } = parts;
  const opened = await openKeyRequest(tx, fresh, undefined, { policy, writerBuild });
  if (opened) return opened;
  const open = await readOpenKeyRequest(tx, ended.conversationId, ended.sessionId, ended.requester);
  // The open request ended between the two statements: this caller opens the next one.
  return open ?? openOrFind(parts, tx, ended);
}
