import { create } from '@bufbuild/protobuf';
import { KeyRequestKindSchema, RequestKeyResponseSchema, SessionService } from '@keytrail/contracts';
import { answerOnce, askedRequest, earlierAnswer } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { keepTrace } from '@keytrail/telemetry';
import { type DeviceId, deviceKey } from '../domain/device.ts';
import type { KeyRequestKind } from '../domain/key-request.ts';
import { gatherFacts } from '../miss.ts';
import type { Parts } from '../parts.ts';
import { userErased } from '../refusals.ts';
import { markEnvelopeRejected } from '../store/envelopes.ts';
import { isOfErasedUser } from '../store/erasures.ts';
import {
  isRequest,
  openOrFind,
  outlookOf,
  priorityOf,
  refusalOf,
  tellRequested,
  type WantedKey,
} from '../wanted-keys.ts';
import { keyRequestMessage } from './messages.ts';

/** Opens a key request, or finds the open one. Whatever is to come after the first offer is the dispatcher's. */
export function requestKey(parts: Parts): Rpc {
  return unary(SessionService.method.requestKey, {
    allow: ['device'],
    async handle(request, call) {
      // The trace of a request is that of its cure: dispatch, holder and delivery go on in it. Said before the peers are asked, so that they export their part too.
      keepTrace('key requested');
      const device = deviceCaller(call);
      const wanted: WantedKey = {
        conversationId: request.conversationId,
        sessionId: request.sessionId,
        kind: KeyRequestKindSchema.value[request.kind]?.localName as KeyRequestKind,
        priority: priorityOf(request.priority),
      };
      const facts = await gatherFacts(parts, wanted, device, call);
      const once = askedRequest(SessionService.method.requestKey, request, deviceKey(device));
      const refused = refusalOf(parts, wanted, device, facts, call);
      if (refused) {
        const earlier = await earlierAnswer(parts.db, once);
        if (earlier) return earlier;
        throw refused.refusal();
      }

      const { response } = await answerOnce(parts.db, once, async (tx) => {
        const rejected = wanted.kind === 'REJECTED' ? await reject(tx, wanted, request.rejectedAttempt, device) : [];
        const [opened] = await openOrFind(parts, tx, device, [{ wanted, facts, rejected }]);
        if (!opened) throw new Error('one key, one result');
        if (!isRequest(opened)) throw opened;
        tellRequested(opened, call);
        return create(RequestKeyResponseSchema, { keyRequest: keyRequestMessage(opened), ...outlookOf(opened) });
      }).catch((error: unknown) => {
        throw isOfErasedUser(error) ? userErased(device.userId) : error;
      });
      return response;
    },
  });
}

/** Without a reason: RejectKey says one. */
async function reject(tx: Transaction, wanted: WantedKey, attempt: number, device: DeviceId): Promise<DeviceId[]> {
  const rejection = await markEnvelopeRejected(tx, { ...wanted, attempt }, device, undefined);
  if (!rejection) throw invalidField('rejected_attempt', 'must be the attempt of an envelope for this device');
  return rejection.before ? [] : [rejection.sealer];
}
