import { littleEndian } from './bytes.ts';
import { lengths } from './primitives.ts';

/**
 * Why a public key is refused, in the order in which the rules are tried.
 * - `length`: it has not the length of its kind
 * - `low-order`: it is a point of small order, in any encoding; everybody can know what comes out of it
 * - `not-canonical`: a coordinate is not reduced, or a bit is set that must be clear: one key, two encodings
 * - `modulus`: an ML-KEM coefficient is not below 3329 (FIPS 203 §7.2)
 * - `not-a-point`: the coordinate is on no point of the curve
 * - `torsion`: the point is outside the prime-order subgroup
 */
export type KeyProblem = 'length' | 'low-order' | 'not-canonical' | 'modulus' | 'not-a-point' | 'torsion';

/** 2^255 - 19. */
export const fieldPrime = (1n << 255n) - 19n;

/** u-coordinates of the points of order 1, 2, 4 and 8 on Curve25519 and its twist (cr.yp.to/ecdh.html, "validate"). */
const smallOrderU = new Set([
  0n,
  1n,
  fieldPrime - 1n,
  325606250916557431795983626356110631294008115727848805560023387167927233504n,
  39382357235489614581723060781553021112529911719440698176882885853963445705823n,
]);

const orderEightY = 0x05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n;

/** y-coordinates of the eight points of small order on edwards25519. */
const smallOrderY = new Set([0n, 1n, fieldPrime - 1n, orderEightY, fieldPrime - orderEightY]);

const lower255 = (1n << 255n) - 1n;

/** The rules for an X25519 public key that cost nothing: length, low order, canonical encoding (u < p, top bit clear). */
export function checkX25519(publicKey: Uint8Array): KeyProblem | undefined {
  if (publicKey.length !== lengths.x25519Key) return 'length';
  const encoded = littleEndian(publicKey);
  if (smallOrderU.has((encoded & lower255) % fieldPrime)) return 'low-order';
  return encoded < fieldPrime ? undefined : 'not-canonical';
}

/** The rules for an Ed25519 public key that cost nothing: length, low order, canonical encoding (y < p). */
export function checkEd25519(publicKey: Uint8Array): KeyProblem | undefined {
  if (publicKey.length !== lengths.ed25519Key) return 'length';
  const y = littleEndian(publicKey) & lower255;
  if (smallOrderY.has(y % fieldPrime)) return 'low-order';
  return y < fieldPrime ? undefined : 'not-canonical';
}

const kemModulus = 3329;
const kemSeedLength = 32;

/** The checks of FIPS 203 §7.2 on an ML-KEM-768 encapsulation key: 1184 bytes, and every 12-bit coefficient below 3329. */
export function checkKemKey(publicKey: Uint8Array): KeyProblem | undefined {
  if (publicKey.length !== lengths.kemPublicKey) return 'length';
  for (let i = 0; i < lengths.kemPublicKey - kemSeedLength; i += 3) {
    const low = publicKey[i] ?? 0;
    const middle = publicKey[i + 1] ?? 0;
    const high = publicKey[i + 2] ?? 0;
    if ((low | ((middle & 0x0f) << 8)) >= kemModulus || ((middle >> 4) | (high << 4)) >= kemModulus) return 'modulus';
  }
  return undefined;
}
