import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import {
  type ChangeRootKeyRequest,
  ChangeRootKeyRequestSchema,
  type RootKeyChange,
  RootKeyChangeSchema,
} from '@keytrail/contracts';
import { certifyDevice, createRootKey, type KeyPair, rootKeyChangeText } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import type { TestDevice } from './device-keys.ts';

interface ChangeOptions {
  readonly from: KeyPair;
  readonly to: KeyPair;
  readonly version: bigint;
  /** By default true; false for a reset. */
  readonly signed?: boolean;
}

export function rootKeyChangeOf(userId: string, { from, to, version, signed = true }: ChangeOptions): RootKeyChange {
  const change = { previousRootKey: from.publicKey, newRootKey: to.publicKey, deviceListVersion: version };
  const text = rootKeyChangeText(userId, change);
  return create(RootKeyChangeSchema, {
    ...change,
    newSignature: nodePrimitives.ed25519.sign(to.privateKey, text),
    previousSignature: signed ? nodePrimitives.ed25519.sign(from.privateKey, text) : new Uint8Array(),
  });
}

/** The request that gives the user of the devices another root key; these devices stay. */
export function changeKeeping(
  devices: readonly TestDevice[],
  { version, signed = true, from, to = createRootKey(nodePrimitives) }: Partial<ChangeOptions> & { version: bigint },
): ChangeRootKeyRequest {
  const [first] = devices;
  if (!first) throw new Error('a device must stay');
  return create(ChangeRootKeyRequestSchema, {
    requestId: randomUUID(),
    rootKeyChange: rootKeyChangeOf(first.userId, { from: from ?? first.rootKey, to, version, signed }),
    certifiedDevices: devices.map((device) => ({
      deviceId: device.deviceId,
      certificate: certifyDevice(nodePrimitives, to, publicKeysOf(device), new Date()),
    })),
  });
}

export function publicKeysOf({ userId, deviceId, identityKey, signingKey }: TestDevice) {
  return { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
}
