import type { Transaction } from '@keytrail/storage';
import { sessionIncomplete } from '../refusals.ts';
import { revokedUntilCommit } from '../store/revoked-devices.ts';
import type { CheckedSession } from './check-session.ts';

/**
 * Refuses a session that covers a device which was revoked since the session was checked: its epoch would be one that the device can
 * read, and the rotation that its revocation made due would be over. Throws SESSION_INCOMPLETE.
 */
export async function refuseRevoked(tx: Transaction, { rosterDevices }: CheckedSession): Promise<void> {
  const devices = rosterDevices.flatMap(({ device }) =>
    device?.userId && device.deviceId ? [{ userId: device.userId, deviceId: device.deviceId }] : [],
  );
  const unexpected = await revokedUntilCommit(tx, devices);
  if (unexpected.length > 0) throw sessionIncomplete({ missing: [], unexpected, staleDeviceLists: [] });
}
