import {
  createRecoveryKey,
  createRootKey,
  noblePrimitives,
  openRecovery,
  parseRecoveryKey,
  RecoveryError,
  RecoveryKeyTextError,
  recoveryKeyText,
  sealRecovery,
} from '@keytrail/crypto';
import { nodePrimitives as primitives } from '@keytrail/crypto/node';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

const bytes32 = fc.uint8Array({ minLength: 32, maxLength: 32 });
const recoveryKey = createRecoveryKey(primitives);
const rootKey = createRootKey(primitives);
const sealed = sealRecovery(primitives, { recoveryKey, userId: 'alice', rootKey });
const kept = { recoveryKey, userId: 'alice', rootKey: rootKey.publicKey, sealed };

describe('a root key sealed by a recovery key', () => {
  it('opens with it, in either implementation', () => {
    for (const opening of [primitives, noblePrimitives]) expect(openRecovery(opening, kept)).toEqual(rootKey);
  });

  it('does not open with another recovery key, for another user, as another root key, or with any bit changed', () => {
    const open = (other: Partial<typeof kept>) => () => openRecovery(primitives, { ...kept, ...other });
    expect(open({ recoveryKey: createRecoveryKey(primitives) })).toThrow('recovery: decrypt');
    expect(open({ userId: 'bob' })).toThrow('recovery: decrypt');
    expect(open({ rootKey: createRootKey(primitives).publicKey })).toThrow('recovery: decrypt');
    expect(open({ sealed: sealed.slice(1) })).toThrow('recovery: malformed');
    fc.assert(
      fc.property(fc.nat(48 * 8 - 1), (bit) => {
        const bad = sealed.with(bit >> 3, (sealed[bit >> 3] ?? 0) ^ (1 << (bit & 7))) as Uint8Array;
        expect(open({ sealed: bad })).toThrow(RecoveryError);
      }),
    );
  });

  it('is refused when what is inside is not the private half of the root key', () => {
    const other = createRootKey(primitives);
    const crossed = { publicKey: rootKey.publicKey, privateKey: other.privateKey };
    const wrong = sealRecovery(primitives, { recoveryKey, userId: 'alice', rootKey: crossed });
    expect(() => openRecovery(primitives, { ...kept, sealed: wrong })).toThrow('recovery: root-key');
  });
});

describe('a recovery key as text', () => {
  const text = recoveryKeyText(recoveryKey);

  it('is read back, however it is typed', () => {
    expect(text).toMatch(/^([0-9A-HJKMNP-TV-Z]{5}-){12}[0-9A-HJKMNP-TV-Z]{5}$/);
    fc.assert(
      fc.property(bytes32, (key) => {
        expect(parseRecoveryKey(recoveryKeyText(key))).toEqual(key);
      }),
    );
    const typed = ` ${text.toLowerCase().replaceAll('-', ' ').replaceAll('0', 'o').replaceAll('1', 'l')}\n`;
    expect(parseRecoveryKey(typed)).toEqual(recoveryKey);
  });

  const problemOf = (typed: string) => {
    try {
      parseRecoveryKey(typed);
    } catch (error) {
      if (error instanceof RecoveryKeyTextError) return { problem: error.problem, group: error.group };
      throw error;
    }
    return undefined;
  };
  const alphabet = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

  it('tells in which group any wrong character is', () => {
    fc.assert(
      fc.property(bytes32, fc.nat(64), fc.integer({ min: 1, max: 31 }), (key, at, by) => {
        const chars = [...recoveryKeyText(key).replaceAll('-', '')];
        chars[at] = alphabet[(alphabet.indexOf(chars[at] as string) + by) % 32] as string;
        expect(problemOf(chars.join(''))).toEqual({ problem: 'group', group: Math.floor(at / 5) + 1 });
      }),
    );
  });

  it('tells in which group any two characters are exchanged, and that two groups are', () => {
    fc.assert(
      fc.property(bytes32, fc.nat(12), fc.nat(4), fc.nat(4), (key, group, a, b) => {
        const chars = [...recoveryKeyText(key).replaceAll('-', '')];
        const [i, j] = [group * 5 + a, group * 5 + b];
        fc.pre(chars[i] !== chars[j]);
        [chars[i], chars[j]] = [chars[j] as string, chars[i] as string];
        expect(problemOf(chars.join(''))).toEqual({ problem: 'group', group: group + 1 });
      }),
    );
    fc.assert(
      fc.property(bytes32, fc.nat(12), fc.nat(12), (key, a, b) => {
        fc.pre(a < b);
        const groups = recoveryKeyText(key).split('-');
        [groups[a], groups[b]] = [groups[b] as string, groups[a] as string];
        expect(problemOf(groups.join('-'))).toEqual({ problem: 'group', group: a + 1 });
      }),
    );
  });

  it('says what is no recovery key at all', () => {
    expect(problemOf('')).toEqual({ problem: 'length', group: undefined });
    expect(problemOf(text.slice(0, -1))).toEqual({ problem: 'length', group: undefined });
    expect(problemOf(`U${text.slice(1)}`)).toEqual({ problem: 'character', group: 1 });
    expect(problemOf('00001-00002-00003-00004-00005-00006-00007-00008-00009-0000A-0000B-0000C-0000D')).toEqual({
      problem: 'checksum',
      group: undefined,
    });
  });
});
