import { ed25519 } from '@noble/curves/ed25519.js';
import { littleEndian } from './bytes.ts';
import type { KeyProblem } from './key-checks.ts';

export type Curve = 'ed25519' | 'x25519';

/**
 * The rules that cost a scalar multiplication: the key decodes to a point, and the point is in the prime-order subgroup. Expects a key
 * that passed the other rules. An X25519 key is looked at as the Edwards point y = (u - 1) / (u + 1) (RFC 7748 §4.1); a u-coordinate
 * of the twist has none.
 */
export function checkSubgroup(curve: Curve, publicKey: Uint8Array): KeyProblem | undefined {
  const encoded = curve === 'ed25519' ? publicKey : edwardsEncoding(littleEndian(publicKey));
  let point: ReturnType<typeof ed25519.Point.fromBytes>;
  try {
    point = ed25519.Point.fromBytes(encoded);
  } catch {
    return 'not-a-point';
  }
  return point.isTorsionFree() ? undefined : 'torsion';
}

function edwardsEncoding(u: bigint): Uint8Array {
  const { Fp } = ed25519.Point;
  return Fp.toBytes(Fp.div(Fp.sub(u, Fp.ONE), Fp.add(u, Fp.ONE)));
}
