import type { Client, ConnectError } from '@connectrpc/connect';
import type { IdentityKeysService, PrekeyStatus } from '@keytrail/contracts';
import { readRefusal, refuse } from '@keytrail/rpc';

/** What identity-keys says of a device now; `unknown` when it could not be asked in time. */
export type DeviceStanding =
  | { readonly kind: 'active'; readonly prekeyStatus: PrekeyStatus | undefined }
  | { readonly kind: 'refused'; readonly why: 'not-registered' | 'revoked'; readonly refusal: ConnectError }
  | { readonly kind: 'unknown' };

export type AskStanding = (device: { readonly userId: string; readonly deviceId: string }) => Promise<DeviceStanding>;

/** Asks identity-keys, for `timeoutMs` at most: presence does not depend on the answer. Never throws; `failed` is told why there was none. */
export function standingFrom(
  identityKeys: Pick<Client<typeof IdentityKeysService>, 'getPrekeyStatus'>,
  timeoutMs: number,
  failed: (error: unknown) => void,
): AskStanding {
  return async ({ userId, deviceId }) => {
    try {
      const { status } = await identityKeys.getPrekeyStatus({ device: { userId, deviceId } }, { timeoutMs });
      return { kind: 'active', prekeyStatus: status };
    } catch (error) {
      const { reason, metadata } = readRefusal(error);
      if (reason === 'DEVICE_NOT_REGISTERED')
        return { kind: 'refused', why: 'not-registered', refusal: notRegistered(deviceId) };
      if (reason === 'DEVICE_REVOKED')
        return { kind: 'refused', why: 'revoked', refusal: deviceRevoked(deviceId, metadata.revoked_at) };
      failed(error);
      return { kind: 'unknown' };
    }
  };
}

/** Asks for `most` devices at a time; the standing of whoever comes past them is unknown, without waiting. */
export function atMost(most: number, ask: AskStanding): AskStanding {
  let asking = 0;
  return async (device) => {
    if (asking >= most) return { kind: 'unknown' };
    asking += 1;
    try {
      return await ask(device);
    } finally {
      asking -= 1;
    }
  };
}

export function notRegistered(deviceId: string): ConnectError {
  return refuse('DEVICE_NOT_REGISTERED', 'the calling device has not been registered', {
    metadata: { device_id: deviceId },
  });
}

export function deviceRevoked(deviceId: string, revokedAt?: string): ConnectError {
  return refuse('DEVICE_REVOKED', 'the calling device has been revoked', {
    metadata: { device_id: deviceId, ...(revokedAt && { revoked_at: revokedAt }) },
  });
}
