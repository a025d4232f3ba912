import { DeclineReasonSchema, SessionService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { callNext } from '../dispatch-key-request.ts';
import { advance, isOpen } from '../domain/key-request.ts';
import { announceDue } from '../key-request-events.ts';
import type { Parts } from '../parts.ts';
import { notOffered } from '../refusals.ts';
import { declineOffer as decline, findRequester, lockKeyRequest, saveKeyRequest } from '../store/key-requests.ts';
import { lockRequesters } from '../store/requesters.ts';

/** Records that a holder does not help, and makes the request due: the next holder is asked. The first decline stands. */
export function declineOffer({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionService.method.declineOffer, {
    allow: ['device'],
    async handle({ keyRequestId, attempt, reason }, call) {
      keepTrace('offer declined');
      const holder = deviceCaller(call);
      const reasonName = DeclineReasonSchema.value[reason]?.localName ?? '';
      const requester = await findRequester(db, keyRequestId);
      await db.transaction(async (tx) => {
        if (requester) lockRequesters(tx, [requester]);
        const request = await lockKeyRequest(tx, keyRequestId);
        const declined = request && (await decline(tx, keyRequestId, attempt, holder, reasonName));
        if (!request || !declined) throw notOffered(keyRequestId);
        // Who repeats it does not disturb those who decide on the request meanwhile.
        if (declined.before || !isOpen(request.state)) return;
        const due = advance(request, { kind: 'declined' }, declined.now);
        await saveKeyRequest(tx, due, request.version);
        await announceDue(tx, due);
        await callNext(tx, due.requester, 1);
      });
      call.log.info({ keyRequestId, attempt, reason: reasonName }, 'offer declined');
      return {};
    },
  });
}
