import { noblePrimitives, type Ref, transcript } from '@keytrail/crypto';

/** The index of the first device that stands earlier in the list already. */
export function repeatedDevice(devices: readonly Ref[]): number | undefined {
  const seen = new Set<string>();
  // A slash is in neither kind of id.
  const index = devices.findIndex(({ userId, deviceId }) => seen.size === seen.add(`${userId}/${deviceId}`).size);
  return index < 0 ? undefined : index;
}

/** SHA-256 over the devices in their order. */
export function digestDevices(devices: readonly Ref[]): Uint8Array {
  const names = devices.flatMap(({ userId, deviceId }) => [userId, deviceId]);
  return noblePrimitives.sha256(transcript('keytrail/claimed-devices', ...names));
}

/** SHA-256 over the users in their order. */
export function digestUsers(userIds: readonly string[]): Uint8Array {
  return noblePrimitives.sha256(transcript('keytrail/claimed-users', ...userIds));
}
