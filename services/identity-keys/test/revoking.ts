import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { type RevokeDeviceRequest, RevokeDeviceRequestSchema } from '@keytrail/contracts';
import { deviceRevocationText, type KeyPair } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import type { TestDevice } from './device-keys.ts';

/** The request that revokes the device, signed by its user's root key, or by the one given. */
export function revocationOf(
  device: TestDevice,
  { rootKey = device.rootKey, signedAt = Date.now() }: { rootKey?: KeyPair; signedAt?: number } = {},
): RevokeDeviceRequest {
  const { userId, deviceId } = device;
  const keys = {
    userId,
    deviceId,
    identityKey: device.identityKey.publicKey,
    signingKey: device.signingKey.publicKey,
  };
  return create(RevokeDeviceRequestSchema, {
    requestId: randomUUID(),
    device: { userId, deviceId },
    revokedAt: timestampFromMs(signedAt),
    signature: nodePrimitives.ed25519.sign(rootKey.privateKey, deviceRevocationText(keys, BigInt(signedAt))),
  });
}
