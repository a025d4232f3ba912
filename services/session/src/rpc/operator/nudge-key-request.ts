import { SessionOperatorService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { announceDue } from '../../key-request-events.ts';
import type { Parts } from '../../parts.ts';
import { keyRequestEnded } from '../../refusals.ts';
import { nudgeKeyRequest as nudge } from '../../store/operator-key-requests.ts';
import { audited } from './audited.ts';
import { keyRequestView, seenKeyRequest } from './key-request-view.ts';

/** Has an open request looked at now. A look that is under way decides on an old version then, and is void. */
export function nudgeKeyRequest({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionOperatorService.method.nudgeKeyRequest, {
    allow: ['operator'],
    async handle({ keyRequestId }, call) {
      return audited(db, call, { action: 'nudge_key_request', keyRequestId, note: '' }, (recordDone) =>
        db.transaction(async (tx) => {
          const nudged = await nudge(tx, keyRequestId);
          const seen = await seenKeyRequest(tx, keyRequestId);
          if (!nudged) throw keyRequestEnded(seen.request);
          await announceDue(tx, nudged);
          await recordDone(tx, nudged.requester);
          return { keyRequest: keyRequestView(seen) };
        }),
      );
    },
  });
}
