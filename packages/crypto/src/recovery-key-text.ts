import { sha256 } from '@noble/hashes/sha2.js';
import { equalBytes } from './bytes.ts';
import { expectLength } from './primitives.ts';
import { RecoveryKeyTextError } from './problems.ts';
import { transcript } from './transcript.ts';

/** Digits and letters without I, L, O and U, which are read as others. */
const alphabet = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
const groups = 13;
const dataPerGroup = 4;

/**
 * A recovery key (32 bytes) as people keep it: 13 groups of 5 characters. The fifth of each group checks the group, so that a typo is found where
 * it is; the last 4 bits check the whole.
 */
export function recoveryKeyText(recoveryKey: Uint8Array): string {
  expectLength(recoveryKey, 32, 'recovery key');
  const values = valuesOf(recoveryKey);
  const shown: string[] = [];
  for (let group = 0; group < groups; group++) {
    const data = values.slice(group * dataPerGroup, (group + 1) * dataPerGroup);
    shown.push([...data, checkOf(data, group)].map((value) => alphabet[value]).join(''));
  }
  return shown.join('-');
}

/**
 * Reads a recovery key as somebody typed it: small letters, spaces, and O for 0, I and L for 1 are all right.
 *
 * @throws RecoveryKeyTextError, which says where the typo is.
 */
export function parseRecoveryKey(text: string): Uint8Array {
  const typed = text.toUpperCase().replaceAll(/[\s-]/g, '').replaceAll('O', '0').replaceAll(/[IL]/g, '1');
  const perGroup = dataPerGroup + 1;
  if (typed.length !== groups * perGroup) throw new RecoveryKeyTextError('length');
  const values: number[] = [];
  for (let group = 0; group < groups; group++) {
    const read = Array.from(typed.slice(group * perGroup, (group + 1) * perGroup), (char) => alphabet.indexOf(char));
    if (read.includes(-1)) throw new RecoveryKeyTextError('character', group + 1);
    const data = read.slice(0, dataPerGroup);
    if (read[dataPerGroup] !== checkOf(data, group)) throw new RecoveryKeyTextError('group', group + 1);
    values.push(...data);
  }
  const recoveryKey = bytesOf(values);
  if (!equalBytes(Uint8Array.from(valuesOf(recoveryKey)), Uint8Array.from(values))) {
    throw new RecoveryKeyTextError('checksum');
  }
  return recoveryKey;
}

/** The 256 bits of the key and 4 of its hash, 5 to a value. */
function valuesOf(recoveryKey: Uint8Array): number[] {
  const check = (sha256(transcript('keytrail/v1/recovery-key-check', recoveryKey))[0] ?? 0) >> 4;
  let bits = (toBigInt(recoveryKey) << 4n) | BigInt(check);
  const values = new Array<number>(groups * dataPerGroup).fill(0);
  for (let at = values.length - 1; at >= 0; at--) {
    values[at] = Number(bits & 31n);
    bits >>= 5n;
  }
  return values;
}

function bytesOf(values: readonly number[]): Uint8Array {
  let bits = values.reduce((all, value) => (all << 5n) | BigInt(value), 0n) >> 4n;
  const bytes = new Uint8Array(32);
  for (let at = bytes.length - 1; at >= 0; at--) {
    bytes[at] = Number(bits & 0xffn);
    bits >>= 8n;
  }
  return bytes;
}

function toBigInt(bytes: Uint8Array): bigint {
  return bytes.reduce((all, byte) => (all << 8n) | BigInt(byte), 0n);
}

/**
 * Σ 2^(i+1) · value_i in GF(32), and the group's number added: with a weight of its own for each place, no single wrong character and no two
 * exchanged ones within a group, nor two exchanged groups, go unseen.
 */
function checkOf(data: readonly number[], group: number): number {
  // Horner's rule from the last place: every further step doubles what came after.
  const sum = data.reduceRight((all, value) => doubled(all ^ value), 0);
  return sum ^ (group + 1);
}

/** Times x in GF(2)[x] / (x^5 + x^2 + 1). */
function doubled(value: number): number {
  return ((value << 1) ^ (value & 16 ? 0b100101 : 0)) & 31;
}
