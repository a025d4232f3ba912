import type { KeyFingerprint } from '@keytrail/contracts';
import type { PrekeyHash } from '@keytrail/crypto';

/** What the service knows of a prekey that the device named. */
export interface KnownPrekey {
  readonly keyId: number;
  /** SHA-256 of the public key; undefined when none was uploaded under the id. */
  readonly hash: Uint8Array | undefined;
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

/**
 * Compares what a device holds of one pool with what the service has: `known` of the prekeys that the device named, and the ids that
 * nobody has claimed.
 */
export function comparePool(
  held: readonly KeyFingerprint[],
  known: readonly KnownPrekey[],
  unclaimed: ReadonlySet<number>,
): PoolDifference {
  const knownById = new Map(known.map((prekey) => [prekey.keyId, prekey]));
  const neverUploaded: number[] = [];
  const otherKey: number[] = [];
  let claimed = 0;
  for (const { keyId, fingerprint } of held) {
    const { hash, retired, otherKind } = knownById.get(keyId) ?? { retired: false, otherKind: false };
    if (otherKind || (hash && !matches(fingerprint, hash))) otherKey.push(keyId);
    else if (!hash) neverUploaded.push(keyId);
    else if (!unclaimed.has(keyId) && !retired) claimed += 1;
  }
  const heldIds = new Set(held.map(({ keyId }) => keyId));
  const notHeld = [...unclaimed].filter((keyId) => !heldIds.has(keyId)).sort((a, b) => a - b);
  const hashes = known.flatMap(({ keyId, hash }) => (hash ? [{ keyId, hash }] : []));
  return { neverUploaded, otherKey, notHeld, claimed, hashes };
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
