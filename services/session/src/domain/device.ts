/** One device of one user. */
export interface DeviceId {
  readonly userId: string;
  readonly deviceId: string;
}

/** A key for maps; neither id may contain a space. */
export function deviceKey({ userId, deviceId }: DeviceId): string {
  return `${userId} ${deviceId}`;
}

export function deviceOfKey(key: string): DeviceId {
  const space = key.indexOf(' ');
  return { userId: key.slice(0, space), deviceId: key.slice(space + 1) };
}

export function sameDevice(a: DeviceId, b: DeviceId): boolean {
  return a.userId === b.userId && a.deviceId === b.deviceId;
}
