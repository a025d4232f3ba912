import { SessionOperatorService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { callNext } from '../../dispatch-key-request.ts';
import { advance, isOpen } from '../../domain/key-request.ts';
import { announceEnd } from '../../key-request-events.ts';
import type { Parts } from '../../parts.ts';
import { keyRequestUnknown } from '../../refusals.ts';
import { findRequester, lockKeyRequest, saveKeyRequest } from '../../store/key-requests.ts';
import { lockRequesters } from '../../store/requesters.ts';
import { audited } from './audited.ts';
import { viewKeyRequest } from './key-request-view.ts';

/** Cancels an open request, and has its requester told; one that has ended stays as it ended. */
export function endKeyRequest({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionOperatorService.method.endKeyRequest, {
    allow: ['operator'],
    async handle({ keyRequestId, note }, call) {
      return audited(db, call, { action: 'end_key_request', keyRequestId, note }, async (recordDone) => {
        const requester = await findRequester(db, keyRequestId);
        return db.transaction(async (tx) => {
          if (requester) lockRequesters(tx, [requester]);
          const request = await lockKeyRequest(tx, keyRequestId);
          if (!request) throw keyRequestUnknown();
          if (isOpen(request.state)) {
            const ended = advance(request, { kind: 'cancelled_by_operator' }, new Date());
            await saveKeyRequest(tx, ended, request.version);
            await announceEnd(tx, ended);
            await callNext(tx, ended.requester, 1);
          }
          await recordDone(tx, request.requester);
          return { keyRequest: await viewKeyRequest(tx, keyRequestId) };
        });
      });
    },
  });
}
