import { compareSafetyNumber, createRootKey, noblePrimitives, safetyNumber } from '@keytrail/crypto';
import { describe, expect, it } from 'vitest';

const someone = (userId: string) => ({ userId, rootKey: createRootKey(noblePrimitives).publicKey });
const [alice, bob, carol] = [someone('alice'), someone('bob'), someone('carol')];

describe('a safety number', () => {
  const own = safetyNumber(alice, bob);

  it('is the same on both sides: 60 digits in groups of 5, and a text for a QR code', () => {
    expect(safetyNumber(bob, alice)).toEqual(own);
    expect(own.digits).toMatch(/^(\d{5} ){11}\d{5}$/);
    // What a QR code of version 40 holds of digits and capital letters, and far less.
    expect(own.qrText).toMatch(/^[0-9A-Z:-]{300,700}$/);
  });

  it('is another one for another root key on either side, and for other users with the same keys', () => {
    for (const other of [
      safetyNumber({ ...alice, rootKey: carol.rootKey }, bob),
      safetyNumber(alice, { ...bob, rootKey: carol.rootKey }),
      safetyNumber({ ...alice, userId: 'al' }, bob),
      safetyNumber({ ...alice, rootKey: bob.rootKey }, { ...bob, rootKey: alice.rootKey }),
    ]) {
      expect(other.digits).not.toBe(own.digits);
      expect(compareSafetyNumber(own, other.digits)).toBe('different');
      expect(compareSafetyNumber(own, other.qrText)).not.toBe('equal');
    }
    expect(() => safetyNumber(alice, alice)).toThrow(RangeError);
  });

  it('compares as digits, typed or read out, and as a scanned code', () => {
    const shown = safetyNumber(bob, alice);
    expect(compareSafetyNumber(own, shown.digits.replaceAll(' ', ''))).toBe('equal');
    expect(compareSafetyNumber(own, shown.digits.replaceAll(' ', '\n'))).toBe('equal');
    expect(compareSafetyNumber(own, shown.qrText)).toBe('equal');
    expect(compareSafetyNumber(own, safetyNumber({ ...bob, rootKey: carol.rootKey }, alice).qrText)).toBe('different');
    expect(compareSafetyNumber(own, safetyNumber(bob, carol).qrText)).toBe('other-users');
    for (const nonsense of [
      '',
      '123',
      'KEYTRAIL-SAFETY:',
      'KEYTRAIL-SAFETY:00',
      'https://example.org',
      own.qrText.slice(0, -2),
    ]) {
      expect(compareSafetyNumber(own, nonsense)).toBe('unreadable');
    }
  });
});
