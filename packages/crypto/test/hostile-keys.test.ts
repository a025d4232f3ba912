import { checkEd25519, checkKemKey, checkX25519 } from '@keytrail/crypto';
import { checkIdentityKey, checkSigningKey, nodePrimitives } from '@keytrail/crypto/node';
import { ED25519_TORSION_SUBGROUP, ed25519, x25519 } from '@noble/curves/ed25519.js';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hex, le32 } from './hex.ts';

const { Point } = ed25519;
const fieldPrime = Point.Fp.ORDER;
const topBit = 1n << 255n;

/** Each number below 2^255 that stands for `value` modulo p, with and without the bit above it: all 32-byte readings of one coordinate. */
function encodingsOf(value: bigint): Uint8Array[] {
  const unreduced = [value, value + fieldPrime].filter((encoded) => encoded < topBit);
  return unreduced.flatMap((encoded) => [le32(encoded), le32(encoded | topBit)]);
}

describe('X25519 keys that RFC 7748 §6.1 warns of, where the shared secret is zero', () => {
  it('are refused in each encoding, derived from the curve itself', async () => {
    const [order8] = ED25519_TORSION_SUBGROUP.map((encoded) => Point.fromHex(encoded)).filter(
      (point) => !point.multiplyUnsafe(4n).is0(),
    );
    if (!order8) throw new Error('no point of order 8');
    const u8 = BigInt(`0x${Buffer.from(ed25519.utils.toMontgomery(order8.toBytes())).reverse().toString('hex')}`);
    const inverse = Point.Fp.inv(u8);
    for (const u of [0n, 1n, fieldPrime - 1n, u8, inverse])
      for (const encoded of encodingsOf(u)) {
        expect(() => x25519.getSharedSecret(new Uint8Array(32).fill(7), encoded)).toThrow();
        expect(checkX25519(encoded)).toBe('low-order');
        expect(await checkIdentityKey(encoded)).toBe('low-order');
      }
  });

  it('are refused, and all that are not reduced or have the top bit set: 19 numbers, and any key', () => {
    for (let u = fieldPrime; u < topBit; u += 1n) expect(checkX25519(le32(u))).toBeDefined();
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: topBit - 1n }), (u) => {
        expect(checkX25519(le32(u | topBit))).toBeDefined();
      }),
    );
  });
});

describe('Ed25519 keys', () => {
  it('of the eight torsion points are refused in each encoding', async () => {
    const ys = new Set(ED25519_TORSION_SUBGROUP.map((encoded) => Point.fromHex(encoded).toAffine().y));
    expect(ys.size).toBe(5);
    for (const y of ys)
      for (const encoded of encodingsOf(y)) {
        expect(checkEd25519(encoded)).toBe('low-order');
        expect(await checkSigningKey(encoded)).toBe('low-order');
      }
  });

  it('with y ≥ p are refused, all 19 with both signs', () => {
    for (let y = fieldPrime; y < topBit; y += 1n)
      for (const encoded of [le32(y), le32(y | topBit)]) expect(checkEd25519(encoded)).toBeDefined();
  });

  it('plus any point of small order, and their X25519 form, are refused for their torsion', async () => {
    const torsion = fc.constantFrom(...ED25519_TORSION_SUBGROUP.map((encoded) => Point.fromHex(encoded)));
    await fc.assert(
      fc.asyncProperty(fc.bigInt({ min: 1n, max: Point.Fn.ORDER - 1n }), torsion, async (secret, t) => {
        const key = Point.BASE.multiply(secret).add(t).toBytes();
        const expected = t.is0() ? undefined : 'torsion';
        expect(await checkSigningKey(key)).toBe(expected);
        expect(await checkIdentityKey(ed25519.utils.toMontgomery(key))).toBe(expected);
      }),
      { numRuns: 24 },
    );
  });

  it('that are random bytes pass only as points of the prime-order subgroup', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 32, maxLength: 32 }), async (bytes) => {
        expect((await checkSigningKey(bytes)) === undefined).toBe(isSound(bytes));
      }),
      { numRuns: 40 },
    );
  });
});

function isSound(encoded: Uint8Array): boolean {
  try {
    const point = Point.fromBytes(encoded);
    return point.isTorsionFree() && !point.is0();
  } catch {
    return false;
  }
}

describe('ML-KEM-768 keys', () => {
  const { publicKey } = nodePrimitives.mlKem768.keyPair();

  it('are refused for one coefficient of 3329 to 4095 at any of the 768 positions (FIPS 203 §7.2)', () => {
    for (let position = 0; position < 768; position++) {
      expect(checkKemKey(withCoefficient(publicKey, position, 3328))).toBeUndefined();
      for (const value of [3329, 3330, 3839, 4095])
        expect(checkKemKey(withCoefficient(publicKey, position, value))).toBe('modulus');
    }
  });

  it('are refused as FIPS 203 §7.2 does it: ByteEncode(ByteDecode(key)) is another text', () => {
    const anyBytes = fc.uint8Array({ minLength: 1184, maxLength: 1184 });
    const spoilt = fc
      .tuple(fc.nat({ max: 767 }), fc.nat({ max: 4095 }))
      .map(([position, value]) => withCoefficient(publicKey, position, value));
    fc.assert(
      fc.property(fc.oneof(anyBytes, spoilt), (key) => {
        const reduced = coefficients(key).map((coefficient) => coefficient % 3329);
        expect(checkKemKey(key) === undefined).toBe(coefficients(key).every((value, i) => value === reduced[i]));
      }),
    );
  });

  it('of another length are refused', () => {
    for (const length of [0, 800, 1183, 1185, 1568]) expect(checkKemKey(new Uint8Array(length))).toBe('length');
  });
});

/** FIPS 203, algorithm 6 with d = 12, bit by bit. */
function coefficients(key: Uint8Array): number[] {
  return Array.from({ length: 768 }, (_, i) => {
    let value = 0;
    for (let bit = 0; bit < 12; bit++) {
      const at = i * 12 + bit;
      value |= (((key[at >> 3] ?? 0) >> (at & 7)) & 1) << bit;
    }
    return value;
  });
}

function withCoefficient(key: Uint8Array, position: number, value: number): Uint8Array {
  const changed = key.slice();
  for (let bit = 0; bit < 12; bit++) {
    const at = position * 12 + bit;
    const mask = 1 << (at & 7);
    changed[at >> 3] = ((changed[at >> 3] ?? 0) & ~mask) | ((value >> bit) & 1 ? mask : 0);
  }
  return changed;
}

describe('the check of the subgroup', () => {
  it('lets the event loop turn while keys wait for it', async () => {
    const keys = Array.from({ length: 50 }, () => nodePrimitives.ed25519.keyPair().publicKey);
    let answered = 0;
    const checks = Promise.all(keys.map((key) => checkSigningKey(key).finally(() => (answered += 1))));
    await new Promise((resolve) => setImmediate(resolve));
    expect(answered).toBeLessThan(keys.length);
    await checks;
  });

  it('answers each key with its own verdict, however many ask at once', async () => {
    const good = nodePrimitives.ed25519.keyPair().publicKey;
    const twist = hex(`02${'00'.repeat(31)}`);
    const asked = Array.from({ length: 60 }, (_, i) => (i % 3 === 0 ? twist : good));
    expect(await Promise.all(asked.map((key) => checkSigningKey(key)))).toEqual(
      asked.map((key) => (key === twist ? 'not-a-point' : undefined)),
    );
  });
});
