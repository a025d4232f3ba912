import type { Ref } from '@keytrail/crypto';
import { refuse } from '@keytrail/rpc';

/** Throws DEVICE_REVOKED when there is a time of revocation. */
export function refuseRevoked({ deviceId }: Ref, revokedAt: Date | null): void {
  if (!revokedAt) return;
  throw refuse('DEVICE_REVOKED', 'the device has been revoked', {
    metadata: { device_id: deviceId, revoked_at: revokedAt.toISOString() },
  });
}
