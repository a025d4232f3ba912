import type { KeyFingerprint } from '@keytrail/contracts';
import type { PrekeyHash } from '@keytrail/crypto';

/** What the service knows of a prekey that the device named, or that the device did not name and is in its pool. */
export interface KnownPrekey {
  readonly keyId: number;
  readonly named: boolean;
  /** SHA-256 of the public key; undefined when none was uploaded under the id. */
  readonly hash: Uint8Array | undefined;
  readonly unclaimed: boolean;
  readonly retired: boolean;
  /** The id names a prekey of another kind. */
  readonly otherKind: boolean;
}

export interface PoolDifference {
  readonly neverUploaded: number[];
  readonly otherKey: number[];
  readonly notHeld: number[];
  /** Held, the same key, and neither in the pool nor retired. */
  readonly claimed: number;
  /** Of the named prekeys, what the service has under their ids. */
  readonly hashes: PrekeyHash[];
}

/** Compares what a device holds of one pool with what the service has. `known` has all named ids, and all of the pool. */
export function comparePool(held: readonly KeyFingerprint[], known: readonly KnownPrekey[]): PoolDifference {
  const fingerprints = new Map(held.map(({ keyId, fingerprint }) => [keyId, fingerprint]));
  const difference = { neverUploaded: [] as number[], otherKey: [] as number[], notHeld: [] as number[], claimed: 0 };
  const hashes: PrekeyHash[] = [];
  for (const { keyId, named, hash, unclaimed, retired, otherKind } of known) {
    const fingerprint = fingerprints.get(keyId);
    if (hash) hashes.push({ keyId, hash });
    if (!named) difference.notHeld.push(keyId);
    else if (otherKind) difference.otherKey.push(keyId);
    else if (!hash) difference.neverUploaded.push(keyId);
    else if (!fingerprint || !matches(fingerprint, hash)) difference.otherKey.push(keyId);
    else if (!unclaimed && !retired) difference.claimed += 1;
  }
  return { ...difference, hashes };
}

export function sameKey(held: KeyFingerprint | undefined, known: PrekeyHash): boolean {
  return held?.keyId === known.keyId && matches(held.fingerprint, known.hash);
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function matches(fingerprint: Uint8Array, hash: Uint8Array): boolean {
  return sameBytes(fingerprint, hash.subarray(0, 8));
}

/** The index of the first prekey whose id is not above the one before. */
export function outOfOrder(prekeys: readonly { readonly keyId: number }[]): number | undefined {
  const index = prekeys.findIndex(({ keyId }, i) => i > 0 && keyId <= (prekeys[i - 1]?.keyId ?? 0));
  return index < 0 ? undefined : index;
}
