import { SessionService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { findRequesterOfOffer } from '../store/key-requests.ts';

/** Tells identity-keys whether a holder claims prekeys to answer an open request, and of which device. */
export function checkOffer({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionService.method.checkOffer, {
    allow: ['service:identity-keys'],
    async handle({ keyRequestId, holder }) {
      if (!holder) throw new Error('the contract requires a holder');
      const requester = await findRequesterOfOffer(db, keyRequestId, holder);
      return requester ? { offered: true, requester } : { offered: false };
    },
  });
}
