import { littleEndian } from './bytes.ts';
import { checkEd25519 } from './key-checks.ts';
import { lengths } from './primitives.ts';

/** The order of the prime-order subgroup of edwards25519. */
const groupOrder = (1n << 252n) + 27742317777372353535851937790883648493n;

/**
 * The rules for an Ed25519 signature that cost nothing: 64 bytes; R canonical, and not of small order, which no honest signer makes; S < L
 * (RFC 8032 §5.1.7), as otherwise one signature has several forms.
 */
export function isWellFormedSignature(signature: Uint8Array): boolean {
  if (signature.length !== lengths.ed25519Signature) return false;
  return checkEd25519(signature.subarray(0, 32)) === undefined && littleEndian(signature.subarray(32)) < groupOrder;
}
