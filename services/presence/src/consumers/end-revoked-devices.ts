import type { DeviceListChanged } from '@keytrail/contracts';
import type { Gateway } from '../gateway.ts';
import type { LeaseStore } from '../store/lease-store.ts';

/** Ends the stream of a revoked device on the gateway that holds it. */
export async function endRevokedDevice(
  { gateway, leases }: { gateway: Gateway; leases: LeaseStore },
  { userId, deviceId, revoked }: DeviceListChanged,
): Promise<void> {
  if (!revoked) return;
  const entry = await leases.find(userId, deviceId);
  if (entry) gateway.endRevoked({ userId, deviceId, entry });
}
