import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { IdentityKeysService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database } from '@keytrail/storage';
import { readRecovery } from '../store/recoveries.ts';
import { refuseRevoked } from './refuse-revoked.ts';

/**
 * The sealed root key of the calling user, also for a device that is yet to be registered: that is what a recovery is for. A revoked device
 * is out of it.
 */
export function getRecovery({ db }: { readonly db: Database }): Rpc {
  return unary(IdentityKeysService.method.getRecovery, {
    allow: ['device'],
    async handle(_request, call) {
      const device = deviceCaller(call);
      const kept = await readRecovery(db, device);
      refuseRevoked(device, kept?.revoked_at ?? null);
      if (!kept?.root_key || !kept.sealed_root_key || !kept.updated_at)
        throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'the user has kept no recovery');
      return {
        rootKey: kept.root_key,
        sealedRootKey: kept.sealed_root_key,
        updatedAt: timestampFromDate(kept.updated_at),
      };
    },
  });
}
