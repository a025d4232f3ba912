import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import type { ConnectError } from '@connectrpc/connect';
import { KeyRequestKindSchema, Recovery, RequestKeyResponseSchema, SessionService } from '@keytrail/contracts';
import { answerOnce, askedRequest, earlierAnswer } from '@keytrail/idempotency';
import { type Call, deviceCaller, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { attr, currentTraceparent, keepTrace, trace } from '@keytrail/telemetry';
import { openKeyRequest } from '../dispatch-key-request.ts';
import { type DeviceId, deviceKey } from '../domain/device.ts';
import { mayRequestKey } from '../domain/explain-miss.ts';
import { type HolderView, isOpen, type KeyRequest, type KeyRequestKind, newKeyRequest } from '../domain/key-request.ts';
import { holderViews } from '../holder-views.ts';
import { explain, type GatheredFacts, gatherFacts, refuseExplained } from '../miss.ts';
import type { Parts } from '../parts.ts';
import { peerUnavailable, userErased } from '../refusals.ts';
import { markEnvelopeRejected } from '../store/envelopes.ts';
import { isOfErasedUser } from '../store/erasures.ts';
import { isHit, readInitialSession } from '../store/initial-session.ts';
import { readOpenKeyRequest } from '../store/key-requests.ts';
import { keyRequestMessage } from './messages.ts';

interface Asked {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly kind: KeyRequestKind;
  readonly rejectedAttempt: number;
}

/**
 * Opens a key request, or finds the open one. The peers are asked anyway, so the first offer is made in the same transaction: with a
 * holder online, the key is on its way before the answer is. Whatever else is to come is the dispatcher's.
 */
export function requestKey(parts: Parts): Rpc {
  return unary(SessionService.method.requestKey, {
    allow: ['device'],
    async handle(request, call) {
      const device = deviceCaller(call);
      const asked: Asked = {
        conversationId: request.conversationId,
        sessionId: request.sessionId,
        kind: KeyRequestKindSchema.value[request.kind]?.localName as KeyRequestKind,
        rejectedAttempt: request.rejectedAttempt,
      };
      const facts = await gatherFacts(parts, asked, device, call);
      const once = askedRequest(SessionService.method.requestKey, request, deviceKey(device));
      const refusal = refusalOf(parts, asked, device, facts, call);
      if (refusal) {
        const earlier = await earlierAnswer(parts.db, once);
        if (earlier) return earlier;
        throw refusal();
      }
      const notNeeded = asked.kind === 'MISSING' && (await hasKey(parts, asked, device, facts));

      const { response } = await answerOnce(parts.db, once, async (tx) => {
        // The trace of a request is that of its cure: dispatch, holder and delivery go on in it.
        keepTrace('key requested');
        if (notNeeded)
          throw refuse('KEY_REQUEST_NOT_NEEDED', 'there is an envelope for this device: read it', {
            metadata: { kind: asked.kind },
          });
        const keyRequest = await openOrFind(parts, tx, asked, device, facts);
        tell(keyRequest, call);
        return create(RequestKeyResponseSchema, {
          keyRequest: keyRequestMessage(keyRequest),
          recovery: recoveryOf(keyRequest),
        });
      }).catch((error: unknown) => {
        throw isOfErasedUser(error) ? userErased(device.userId) : error;
      });
      return response;
    },
  });
}

/** Why the device may not request the key, if so. A miss counts as one when its refusal is made, and then only. */
function refusalOf(
  parts: Parts,
  asked: Asked,
  device: DeviceId,
  facts: GatheredFacts,
  call: Call,
): (() => ConnectError) | undefined {
  const { entitlement, deviceLists } = facts.answers;
  if (!entitlement.known) return () => peerUnavailable(entitlement.peer);
  const miss = explain(parts, asked, device, facts);
  if (miss.kind === 'miss' && !mayRequestKey(miss.cause)) return () => refuseExplained(miss, facts, parts.config, call);
  // Whether it may be requested is clear without presence: the dispatcher asks again.
  return deviceLists.known ? undefined : () => peerUnavailable(deviceLists.peer);
}

async function hasKey({ db }: Parts, asked: Asked, device: DeviceId, facts: GatheredFacts): Promise<boolean> {
  if (facts.local.newestAttempt === undefined) return false;
  const row = await readInitialSession(db, asked.conversationId, asked.sessionId, device.userId, device.deviceId);
  return row !== undefined && isHit(row);
}

async function openOrFind(
  parts: Parts,
  tx: Transaction,
  asked: Asked,
  device: DeviceId,
  facts: GatheredFacts,
): Promise<KeyRequest> {
  const rejected = asked.kind === 'REJECTED' ? await rejectEnvelope(tx, asked, device) : [];
  const views = viewsOf(facts, rejected);
  const { now, session } = facts.local;
  if (!session) throw new Error('only a stored session can be requested');
  const fresh = newKeyRequest({
    keyRequestId: randomUUID(),
    conversationId: asked.conversationId,
    sessionId: asked.sessionId,
    epoch: session.epoch,
    requester: device,
    kind: asked.kind,
    requestedAt: now,
    expiresAt: new Date(now.getTime() + parts.config.expiryMs),
    traceparent: currentTraceparent(),
  });
  const opened = await openKeyRequest(tx, fresh, views, { policy: parts.config, writerBuild: parts.writerBuild });
  if (opened) return opened;
  const open = await readOpenKeyRequest(tx, asked.conversationId, asked.sessionId, device);
  if (open) return open;
  // The open request ended between the two statements: this caller opens the next one.
  return openOrFind(parts, tx, asked, device, facts);
}

async function rejectEnvelope(tx: Transaction, asked: Asked, device: DeviceId): Promise<DeviceId[]> {
  const sealer = await markEnvelopeRejected(tx, { ...asked, attempt: asked.rejectedAttempt }, device);
  if (!sealer) throw invalidField('rejected_attempt', 'must be the attempt of an envelope for this device');
  return [sealer];
}

/** Undefined when presence could not be asked. */
function viewsOf({ local, ranked, answers }: GatheredFacts, rejected: readonly DeviceId[]): HolderView[] | undefined {
  const { entitlement, deviceLists, online } = answers;
  if (!entitlement.known || !deviceLists.known || !online.known) return undefined;
  return holderViews(ranked, {
    entitlement: entitlement.value,
    deviceLists: deviceLists.value,
    online: online.value,
    rejected: [...local.rejected, ...rejected],
    offers: [],
  });
}

function recoveryOf({ state }: KeyRequest): Recovery {
  if (state === 'OFFERED') return Recovery.PENDING_OFFERED;
  return isOpen(state) ? Recovery.PENDING_NO_HOLDER_ONLINE : Recovery.NO_HOLDER_EXISTS;
}

function tell(request: KeyRequest, call: Call): void {
  const { keyRequestId, state, attempt, holders, conversationId, sessionId } = request;
  trace.getActiveSpan()?.setAttributes({
    [attr.keyRequestId]: keyRequestId,
    [attr.keyRequestState]: state,
    [attr.holdersKnown]: holders,
  });
  call.log.info({ keyRequestId, conversationId, sessionId, state, attempt, holders }, 'key requested');
}
