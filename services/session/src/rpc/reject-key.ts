import { create } from '@bufbuild/protobuf';
import { KeyRejectionReasonSchema, RejectKeyResponseSchema, SessionService } from '@keytrail/contracts';
import { answerOnce, askedRequest, earlierAnswer } from '@keytrail/idempotency';
import { deviceCaller, type Rpc, refuse, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { deviceKey } from '../domain/device.ts';
import { gatherFacts } from '../miss.ts';
import type { Parts } from '../parts.ts';
import { userErased } from '../refusals.ts';
import { markEnvelopeRejected, type RejectedBecause } from '../store/envelopes.ts';
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

/**
 * Records that a device says an envelope is wrong, and asks the next holder. The sealer is passed over while others remain; when nobody does,
 * or the device has rejected too many, that is the answer.
 */
export function rejectKey(parts: Parts): Rpc {
  return unary(SessionService.method.rejectKey, {
    allow: ['device'],
    async handle(request, call) {
      keepTrace('key rejected');
      const device = deviceCaller(call);
      const { conversationId, sessionId, attempt } = request;
      const because = KeyRejectionReasonSchema.value[request.reason]?.localName as RejectedBecause;
      const wanted: WantedKey = {
        conversationId,
        sessionId,
        kind: 'REJECTED',
        priority: priorityOf(request.priority),
      };
      const facts = await gatherFacts(parts, wanted, device, call);
      const once = askedRequest(SessionService.method.rejectKey, request, deviceKey(device));
      const refused = refusalOf(parts, wanted, device, facts, call);
      if (refused) {
        const earlier = await earlierAnswer(parts.db, once);
        if (earlier) return earlier;
        throw refused.refusal();
      }

      const { response } = await answerOnce(parts.db, once, async (tx) => {
        const rejection = await markEnvelopeRejected(tx, { conversationId, sessionId, attempt }, device, because);
        if (!rejection || (rejection.before && rejection.superseded))
          throw refuse(
            'KEY_REQUEST_NOT_NEEDED',
            rejection ? 'there is a newer envelope for this device: read it' : 'the device has no such envelope',
            { metadata: { kind: 'REJECTED' } },
          );
        const rejected = rejection.before ? [] : [rejection.sealer];
        const [opened] = await openOrFind(parts, tx, device, [{ wanted, facts, rejected }]);
        if (!opened) throw new Error('one key, one result');
        if (!isRequest(opened)) throw opened;
        tx.afterCommit(() => {
          call.log.warn({ conversationId, sessionId, attempt, because, before: rejection.before }, 'key rejected');
          tellRequested(opened, call);
        });
        return create(RejectKeyResponseSchema, { keyRequest: keyRequestMessage(opened), ...outlookOf(opened) });
      }).catch((error: unknown) => {
        throw isOfErasedUser(error) ? userErased(device.userId) : error;
      });
      return response;
    },
  });
}
