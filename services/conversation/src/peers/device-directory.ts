import type { Device, DeviceList, IdentityKeysService } from '@keytrail/contracts';
import { type Peer, readRefusal } from '@keytrail/rpc';
import { LRUCache } from 'lru-cache';

/** A device as it stands in the directory. */
export type DeviceStanding =
  | { readonly state: 'active'; readonly signingKey: Uint8Array }
  | { readonly state: 'unknown' }
  | { readonly state: 'revoked'; readonly revokedAt: Device['revokedAt'] };

/** The devices of users, as identity-keys tells them. */
export interface DeviceDirectory {
  /** One list for each user, in that order, revoked devices included. Always fresh. */
  devicesOf(userIds: readonly string[]): Promise<DeviceList[]>;
  /** Remembered for a while when the device is active; a revocation is noticed within that time. */
  standingOf(device: { readonly userId: string; readonly deviceId: string }): Promise<DeviceStanding>;
}

export function deviceDirectory(
  identityKeys: Pick<Peer<typeof IdentityKeysService>, 'getDevices'>,
  cache: { readonly size: number; readonly ttlMs: number },
): DeviceDirectory {
  const active = new LRUCache<string, DeviceStanding>({ max: cache.size, ttl: cache.ttlMs });

  async function askFor(userIds: readonly string[]): Promise<DeviceList[]> {
    try {
      const { deviceLists } = await identityKeys.getDevices({ userIds: [...userIds], includeRevoked: true });
      return deviceLists;
    } catch (error) {
      // Too many devices for one answer: ask for half of the users at a time.
      if (userIds.length === 1 || readRefusal(error).reason !== 'LIMIT_EXCEEDED') throw error;
      const half = Math.ceil(userIds.length / 2);
      return [...(await askFor(userIds.slice(0, half))), ...(await askFor(userIds.slice(half)))];
    }
  }

  async function devicesOf(userIds: readonly string[]): Promise<DeviceList[]> {
    const deviceLists = await askFor(userIds);
    if (deviceLists.length !== userIds.length || deviceLists.some((list, index) => list.userId !== userIds[index]))
      throw new Error('identity-keys answered with other users than those asked for');
    return deviceLists;
  }

  return {
    devicesOf,
    async standingOf({ userId, deviceId }) {
      const key = `${userId} ${deviceId}`;
      const known = active.get(key);
      if (known) return known;
      const [list] = await devicesOf([userId]);
      const standing = standingIn(list, deviceId);
      if (standing.state === 'active') active.set(key, standing);
      return standing;
    },
  };
}

export function standingIn(list: DeviceList | undefined, deviceId: string): DeviceStanding {
  const device = list?.devices.find((candidate) => candidate.deviceId === deviceId);
  if (!device) return { state: 'unknown' };
  if (device.revokedAt) return { state: 'revoked', revokedAt: device.revokedAt };
  return { state: 'active', signingKey: device.signingKey };
}
