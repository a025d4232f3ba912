import type { Ref } from '@keytrail/crypto';
import { refuse } from '@keytrail/rpc';
import type { StoredDevice } from '../store/revocations.ts';
import { refuseRevoked } from './refuse-revoked.ts';

/** The calling device among those of its user. Throws DEVICE_NOT_REGISTERED, DEVICE_REVOKED. */
export function registeredDevice(caller: Ref, devices: readonly StoredDevice[]): StoredDevice {
  const device = devices.find(({ device_id }) => device_id === caller.deviceId);
  if (!device)
    throw refuse('DEVICE_NOT_REGISTERED', 'the calling device has not been registered', {
      metadata: { device_id: caller.deviceId },
    });
  refuseRevoked(caller, device.revoked_at);
  return device;
}
