import { sha256 } from '@noble/hashes/sha2.js';
import type { DeviceKeys } from './certificate.ts';
import { type Part, transcript } from './transcript.ts';

/** A published prekey without its bytes. */
export interface PrekeyHash {
  readonly keyId: number;
  /** SHA-256 of the public key: 32 bytes. */
  readonly hash: Uint8Array;
}

/** The keys of a device that peers may seal to, as CheckKeys compares them. */
export interface PublishedKeys extends DeviceKeys {
  /** Of the device certificate: 64 bytes. */
  readonly certificateSignature: Uint8Array;
  readonly signedPrekey: PrekeyHash;
  readonly lastResortPrekey: PrekeyHash;
  /** In any order. */
  readonly oneTimePrekeys: readonly PrekeyHash[];
  readonly oneTimeKemPrekeys: readonly PrekeyHash[];
}

export function publishedKeysText(keys: PublishedKeys): Uint8Array {
  return transcript(
    'keytrail/v1/published-keys',
    keys.userId,
    keys.deviceId,
    keys.identityKey,
    keys.signingKey,
    keys.certificateSignature,
    ...partsOf([keys.signedPrekey]),
    ...partsOf([keys.lastResortPrekey]),
    ...partsOf(keys.oneTimePrekeys),
    ...partsOf(keys.oneTimeKemPrekeys),
  );
}

/** The digest that CheckKeys compares: 32 bytes. */
export function publishedKeysDigest(keys: PublishedKeys): Uint8Array {
  return sha256(publishedKeysText(keys));
}

export function publicKeyHash(publicKey: Uint8Array): Uint8Array {
  return sha256(publicKey);
}

/** The first 8 bytes of a hash: `KeyFingerprint.fingerprint`. */
export function fingerprintOf({ hash }: PrekeyHash): Uint8Array {
  return hash.slice(0, 8);
}

function partsOf(prekeys: readonly PrekeyHash[]): Part[] {
  const sorted = [...prekeys].sort((a, b) => a.keyId - b.keyId);
  return [sorted.length, ...sorted.flatMap(({ keyId, hash }) => [keyId, hash])];
}
