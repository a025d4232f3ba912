import type { NotificationRequested } from '@keytrail/contracts';
import { deviceKey } from '../domain/attachment.ts';
import type { Gateway } from '../gateway.ts';
import type { FoundDevice, LeaseStore } from '../store/lease-store.ts';

/**
 * Delivers a notification to those of the named devices that are attached. Whoever is not attached is skipped: notifications are hints,
 * the state is pulled at the next attach. One round trip to Redis.
 */
export async function notifyDevices(
  { gateway, leases }: { gateway: Gateway; leases: LeaseStore },
  { devices, userIds, notification }: NotificationRequested,
): Promise<void> {
  if (!notification) return;
  const wholeUsers = new Set(userIds);
  const named = new Set(devices.map((device) => deviceKey(device.userId, device.deviceId)));
  const found = await leases.findAll([...new Set([...userIds, ...devices.map((device) => device.userId)])]);
  const wanted = (device: FoundDevice) =>
    wholeUsers.has(device.userId) || named.has(deviceKey(device.userId, device.deviceId));
  for (const device of found.filter(wanted)) gateway.deliver(device, notification);
}
