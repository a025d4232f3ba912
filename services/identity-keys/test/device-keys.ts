import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import {
  type KemPrekey,
  type OneTimePrekey,
  type RegisterDeviceRequest,
  RegisterDeviceRequestSchema,
} from '@keytrail/contracts';
import {
  certifyDevice,
  createKemPrekey,
  createOneTimePrekey,
  createRootKey,
  createSignedPrekey,
  type KeyPair,
  type NewPrekey,
  type PrekeySigner,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';

/** A device's private long-term keys, and those of its prekeys that it has made so far. */
export interface TestDevice extends PrekeySigner {
  readonly rootKey: KeyPair;
  readonly identityKey: KeyPair;
  readonly signedPrekey: NewPrekey<unknown>;
  readonly lastResortPrekey: NewPrekey<KemPrekey>;
}

export interface TestDeviceOptions {
  readonly userId: string;
  readonly deviceId: string;
  /** The user's root key; a new one by default, as the first device makes it. */
  readonly rootKey?: KeyPair;
  /** How many one-time prekeys of each kind; their ids are 1 to n, those of the KEM prekeys 2 to n + 1. By default 3. */
  readonly oneTime?: number;
  readonly kem?: number;
  readonly certifiedAt?: Date;
}

/** The id of the last-resort prekey; one-time KEM prekeys come after it. */
export const lastResortKeyId = 1;

/** A device with a whole, valid key set, and the request that registers it. */
export function makeDevice(options: TestDeviceOptions): { device: TestDevice; registration: RegisterDeviceRequest } {
  const { userId, deviceId, oneTime = 3, kem = 3, certifiedAt = new Date() } = options;
  const rootKey = options.rootKey ?? createRootKey(nodePrimitives);
  const identityKey = nodePrimitives.x25519.keyPair();
  const signer = { userId, deviceId, signingKey: nodePrimitives.ed25519.keyPair() };
  const signedPrekey = createSignedPrekey(nodePrimitives, signer, 1);
  const lastResortPrekey = createKemPrekey(nodePrimitives, signer, lastResortKeyId, 'kem-last-resort');
  const publicKeys = {
    userId,
    deviceId,
    identityKey: identityKey.publicKey,
    signingKey: signer.signingKey.publicKey,
  };
  return {
    device: { ...signer, rootKey, identityKey, signedPrekey, lastResortPrekey },
    registration: create(RegisterDeviceRequestSchema, {
      requestId: randomUUID(),
      identityKey: publicKeys.identityKey,
      signingKey: publicKeys.signingKey,
      certificate: certifyDevice(nodePrimitives, rootKey, publicKeys, certifiedAt),
      signedPrekey: signedPrekey.upload,
      lastResortPrekey: lastResortPrekey.upload,
      oneTimePrekeys: makeOneTimePrekeys(1, oneTime),
      oneTimeKemPrekeys: makeKemPrekeys(signer, lastResortKeyId + 1, kem),
    }),
  };
}

/** `count` one-time prekeys to upload, with ids from `firstKeyId` on. */
export function makeOneTimePrekeys(firstKeyId: number, count: number): OneTimePrekey[] {
  return Array.from({ length: count }, (_, i) => createOneTimePrekey(nodePrimitives, firstKeyId + i).upload);
}

/** `count` signed one-time KEM prekeys to upload, with ids from `firstKeyId` on. */
export function makeKemPrekeys(signer: PrekeySigner, firstKeyId: number, count: number): KemPrekey[] {
  return Array.from(
    { length: count },
    (_, i) => createKemPrekey(nodePrimitives, signer, firstKeyId + i, 'kem-one-time').upload,
  );
}
