import { SessionService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { callNext } from '../dispatch-key-request.ts';
import { sameDevice } from '../domain/device.ts';
import { advance, isOpen } from '../domain/key-request.ts';
import { announceEnd } from '../key-request-events.ts';
import type { Parts } from '../parts.ts';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { lockKeyRequest, saveKeyRequest } from '../store/key-requests.ts';
import { lockRequesters } from '../store/requesters.ts';
import { keyRequestMessage } from './messages.ts';

/** Ends the calling device's own request; one that has ended already is returned as it is. */
export function cancelKeyRequest({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionService.method.cancelKeyRequest, {
    allow: ['device'],
    async handle({ keyRequestId }, call) {
      const device = deviceCaller(call);
      const keyRequest = await db.transaction(async (tx) => {
        lockRequesters(tx, [device]);
        const request = await lockKeyRequest(tx, keyRequestId);
        if (!request || !sameDevice(request.requester, device)) throw notFoundOrNotPermitted();
        if (!isOpen(request.state)) return request;
        const cancelled = advance(request, { kind: 'cancelled' }, new Date());
        await saveKeyRequest(tx, cancelled, request.version);
        await announceEnd(tx, cancelled);
        await callNext(tx, device, 1);
        return cancelled;
      });
      return { keyRequest: keyRequestMessage(keyRequest) };
    },
  });
}
