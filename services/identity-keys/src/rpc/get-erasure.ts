import { IdentityKeysService } from '@keytrail/contracts';
import { type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import { findErasure } from '../store/erasures.ts';
import { erasureMessage } from './erasure-message.ts';

/** How far an erasure is, and what each service did. For operators. */
export function getErasure({ db }: { readonly db: Database }): Rpc {
  return unary(IdentityKeysService.method.getErasure, {
    allow: ['operator'],
    async handle({ erasureId }) {
      const erasure = await findErasure(db, erasureId);
      if (!erasure) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such erasure');
      return { erasure: await erasureMessage(db, erasure) };
    },
  });
}
