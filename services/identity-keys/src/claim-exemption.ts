import type { Client } from '@connectrpc/connect';
import type { Caller } from '@keytrail/auth';
import type { SessionService } from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';

export type SessionPeer = Pick<Client<typeof SessionService>, 'checkOffer'>;

/**
 * Whether a claim serves a key request: it is open, offered to the calling device, and made by the only device that is claimed. Such a
 * claim is exempt from the limits and the policy. Throws PEER_UNAVAILABLE.
 */
export async function servesKeyRequest(
  session: SessionPeer,
  caller: Caller,
  { keyRequestId, devices }: { readonly keyRequestId: string; readonly devices: readonly Ref[] },
): Promise<boolean> {
  const [device] = devices;
  if (keyRequestId === '' || caller.kind !== 'device' || device === undefined || devices.length > 1) return false;
  const holder = { userId: caller.userId, deviceId: caller.deviceId };
  const { offered, requester } = await session.checkOffer({ keyRequestId, holder });
  return offered && requester?.userId === device.userId && requester.deviceId === device.deviceId;
}
