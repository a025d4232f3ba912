import { sha512 } from '@noble/hashes/sha2.js';
import { concatBytes, equalBytes } from './bytes.ts';
import { suite } from './primitives.ts';
import type { RecoverySubject } from './recovery.ts';
import { decodeParts, transcript } from './transcript.ts';

/** A user and the root key (32 bytes, Ed25519) that a device holds for theirs. */
export type RootKeyOwner = RecoverySubject;

const rounds = 5200;
const hashLength = 64;

/** The hash that stands for a user's root key: 64 bytes. Each guess at another key with a similar one costs 5,201 hashes. */
export function rootKeyFingerprint({ userId, rootKey }: RootKeyOwner): Uint8Array {
  let hash = sha512(transcript('keytrail/v1/root-key-fingerprint', suite, userId, rootKey));
  for (let round = 0; round < rounds; round++) hash = sha512(concatBytes(hash, rootKey));
  return hash;
}

/** What two people compare to know that no other root keys stand between them. */
export interface SafetyNumber {
  /** 12 groups of 5 digits with a space between them: 60 digits, the same for both. */
  readonly digits: string;
  /** For a QR code; the same for both. */
  readonly qrText: string;
}

/** The safety number of two users. The order does not matter. @throws RangeError for one user twice. */
export function safetyNumber(a: RootKeyOwner, b: RootKeyOwner): SafetyNumber {
  if (a.userId === b.userId) throw new RangeError('a safety number is for two users');
  const [first, second] = a.userId < b.userId ? [a, b] : [b, a];
  const [one, two] = [rootKeyFingerprint(first), rootKeyFingerprint(second)];
  const halves = [digitsOf(one), digitsOf(two)].sort();
  const qr = transcript('keytrail/v1/safety-number', first.userId, one, second.userId, two);
  return { digits: halves.flat().join(' '), qrText: qrPrefix + hexOf(qr) };
}

const qrPrefix = 'KEYTRAIL-SAFETY:';

/**
 * Compares a safety number with what the other side shows: its digits, typed with or without spaces, or the text of its QR code.
 *
 * - `different`: other root keys. Somebody may stand between the two.
 * - `other-users`: the code is of another pair of users.
 * - `unreadable`: neither digits nor a code.
 */
export function compareSafetyNumber(
  own: SafetyNumber,
  shown: string,
): 'equal' | 'different' | 'other-users' | 'unreadable' {
  const compact = shown.replaceAll(/\s/g, '');
  if (/^[0-9]{60}$/.test(compact)) return compact === own.digits.replaceAll(' ', '') ? 'equal' : 'different';
  const [ours, theirs] = [readQrText(own.qrText), readQrText(compact.toUpperCase())];
  if (ours === undefined || theirs === undefined) return 'unreadable';
  if (!equalBytes(ours.users, theirs.users)) return 'other-users';
  return equalBytes(ours.fingerprints, theirs.fingerprints) ? 'equal' : 'different';
}

function readQrText(text: string): { users: Uint8Array; fingerprints: Uint8Array } | undefined {
  const hex = text.startsWith(qrPrefix) ? text.slice(qrPrefix.length) : '';
  if (!/^([0-9A-F]{2})+$/.test(hex)) return undefined;
  const bytes = Uint8Array.from({ length: hex.length / 2 }, (_, i) => Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16));
  const [, first, one, second, two, ...more] = decodeParts(bytes) ?? [];
  if (first === undefined || one === undefined || second === undefined || two === undefined) return undefined;
  if (one.length !== hashLength || two.length !== hashLength || more.length > 0) return undefined;
  return { users: transcript('users', first, second), fingerprints: concatBytes(one, two) };
}

/** 30 digits in 6 groups: of the first 30 bytes each five, as an integer modulo 100,000. */
function digitsOf(fingerprint: Uint8Array): string {
  const shown: string[] = [];
  for (let at = 0; at < 30; at += 5) {
    const five = fingerprint.slice(at, at + 5).reduce((all, byte) => all * 256 + byte, 0);
    shown.push(String(five % 100_000).padStart(5, '0'));
  }
  return shown.join(' ');
}

/** Capital letters, because QR codes have a shorter form for them. */
function hexOf(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0'))
    .join('')
    .toUpperCase();
}
