import type { Call } from '@keytrail/rpc';
import { refuse } from '@keytrail/rpc';
import type { Sharing } from '../sharing.ts';
import type { Standings } from '../standings.ts';
import { refuseRevoked } from './refuse-revoked.ts';

/** For what only active devices may do; services may. Throws DEVICE_NOT_REGISTERED, DEVICE_REVOKED. */
export async function refuseInactive(standings: Standings, { caller }: Call): Promise<void> {
  if (caller.kind !== 'device') return;
  const { registered, revokedAt } = await standings.of(caller);
  if (!registered)
    throw refuse('DEVICE_NOT_REGISTERED', 'the calling device has not been registered', {
      metadata: { device_id: caller.deviceId },
    });
  refuseRevoked(caller, revokedAt ?? null);
}

/**
 * Of the users, those about whom the caller may read. A device that is not registered yet knows its own user alone: it needs that to be linked, or to
 * recover. Throws DEVICE_REVOKED, PEER_UNAVAILABLE.
 */
export async function readableUsers(
  { standings, sharing }: { readonly standings: Standings; readonly sharing: Sharing },
  { caller }: Call,
  userIds: readonly string[],
): Promise<ReadonlySet<string>> {
  if (caller.kind !== 'device') return sharing.knownTo(caller, userIds);
  const { registered, revokedAt } = await standings.of(caller);
  refuseRevoked(caller, revokedAt ?? null);
  return registered ? sharing.knownTo(caller, userIds) : new Set([caller.userId]);
}
