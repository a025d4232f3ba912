import type { DeviceListVersion, DeviceRef, InitialSession } from '@keytrail/contracts';

export interface NamedDevice {
  readonly userId: string;
  readonly deviceId: string;
}

/** A user's active devices at the current version of the list; version 0 for a user without devices. */
export interface ActiveDevices {
  readonly userId: string;
  readonly version: bigint;
  readonly deviceIds: readonly string[];
}

/** What keeps a session from covering its roster. */
export interface Incompleteness {
  readonly missing: readonly NamedDevice[];
  readonly unexpected: readonly NamedDevice[];
  readonly staleDeviceLists: readonly { readonly userId: string; readonly version: bigint }[];
}

/**
 * Compares a session with the devices of its roster: each active device has one envelope or one withholding, nobody else has
 * any, and each device list is pinned at its current version. A user without devices is covered by the pin of version 0.
 * Undefined when the session is complete.
 */
export function incompletenessOf(
  session: Pick<InitialSession, 'envelopes' | 'withholdings'>,
  pins: readonly DeviceListVersion[],
  roster: readonly ActiveDevices[],
): Incompleteness | undefined {
  const wanted = new Map<string, NamedDevice>();
  for (const { userId, deviceIds } of roster)
    for (const deviceId of deviceIds) wanted.set(keyOf({ userId, deviceId }), { userId, deviceId });

  const unexpected: NamedDevice[] = [];
  const named = [...session.envelopes.map((e) => e.recipient), ...session.withholdings.map((w) => w.device)];
  for (const device of named) {
    if (device && !wanted.delete(keyOf(device))) unexpected.push({ userId: device.userId, deviceId: device.deviceId });
  }
  const pinned = new Map(pins.map((pin) => [pin.userId, pin.version]));
  const staleDeviceLists = roster
    .filter(({ userId, version }) => pinned.get(userId) !== version)
    .map(({ userId, version }) => ({ userId, version }));

  const missing = [...wanted.values()];
  return missing.length + unexpected.length + staleDeviceLists.length > 0
    ? { missing, unexpected, staleDeviceLists }
    : undefined;
}

// Ids never contain a space, so that two devices never have the same key.
function keyOf(device: Pick<DeviceRef, 'userId' | 'deviceId'>): string {
  return `${device.userId} ${device.deviceId}`;
}
