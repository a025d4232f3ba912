import { checkEd25519, checkKemKey, checkX25519, noblePrimitives, type Primitives } from '@keytrail/crypto';
import { checkIdentityKey, checkSigningKey, nodePrimitives } from '@keytrail/crypto/node';
import { ED25519_TORSION_SUBGROUP, ed25519 } from '@noble/curves/ed25519.js';
import { describe, expect, it } from 'vitest';
import { hex, le32 } from './hex.ts';

const p = (1n << 255n) - 19n;
const topBit = 1n << 255n;
const ff = 'ff'.repeat(30);
const zeros = '00'.repeat(31);

/** cr.yp.to/ecdh.html and libsodium's blacklist: what gives an all-zero secret, as RFC 7748 reads it (the top bit ignored). */
const smallOrderX25519 = [
  `00${zeros}`,
  `01${zeros}`,
  'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800',
  '5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157',
  `ec${ff}7f`,
  `ed${ff}7f`,
  `ee${ff}7f`,
];

/** The rest of that page's list: of small order only where the top bit counts. */
const smallOrderWithoutMasking = [
  'cdeb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880',
  '4c9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7',
  `d9${ff}ff`,
  `da${ff}ff`,
  `db${ff}ff`,
];

/** libsodium's list for Ed25519, canonical and not. */
const smallOrderEd25519 = [
  `00${zeros}`,
  `01${zeros}`,
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
  `ec${ff}7f`,
  `ed${ff}7f`,
  `ee${ff}7f`,
];

function withTopBit(key: Uint8Array): Uint8Array {
  return key.with(31, (key[31] ?? 0) | 0x80) as Uint8Array;
}

const both: [string, Primitives][] = [
  ['noble', noblePrimitives],
  ['node', nodePrimitives],
];

describe('X25519 keys', () => {
  it.each(smallOrderX25519)('of low order are refused: %s', async (encoded) => {
    for (const key of [hex(encoded), withTopBit(hex(encoded))]) {
      expect(checkX25519(key)).toBe('low-order');
      expect(await checkIdentityKey(key)).toBe('low-order');
      for (const [, { x25519 }] of both) expect(x25519.sharedSecret(x25519.keyPair().privateKey, key)).toBeUndefined();
    }
  });

  it.each(smallOrderWithoutMasking)('of low order by another reading are refused for their encoding: %s', (encoded) => {
    expect(checkX25519(hex(encoded))).toBe('not-canonical');
  });

  it('that are not reduced, or have the top bit set, are refused', () => {
    expect(checkX25519(le32(p + 2n))).toBe('not-canonical');
    expect(checkX25519(le32(p + 18n))).toBe('not-canonical');
    expect(checkX25519(le32(9n + topBit))).toBe('not-canonical');
    expect(checkX25519(le32(9n))).toBeUndefined();
    expect(checkX25519(new Uint8Array(31))).toBe('length');
  });

  it('that were made from a private key pass every rule', async () => {
    for (const [, { x25519 }] of both) expect(await checkIdentityKey(x25519.keyPair().publicKey)).toBeUndefined();
  });

  it('on the twist, or outside the prime-order subgroup, are refused as identity keys', async () => {
    expect(await checkIdentityKey(le32(2n))).toBe('not-a-point');
    for (const key of withTorsion().map((point) => ed25519.utils.toMontgomery(point))) {
      expect(checkX25519(key)).toBeUndefined();
      expect(await checkIdentityKey(key)).toBe('torsion');
    }
  });
});

describe('Ed25519 keys', () => {
  it.each(smallOrderEd25519)('of low order are refused, and verify nothing: %s', async (encoded) => {
    for (const key of [hex(encoded), withTopBit(hex(encoded))]) {
      expect(checkEd25519(key)).toBe('low-order');
      expect(await checkSigningKey(key)).toBe('low-order');
      // R = the neutral point, S = 0: holds for one text in eight at least, unless such keys are refused.
      const signature = Uint8Array.of(1, ...new Uint8Array(63));
      const texts = Array.from({ length: 64 }, (_, n) => Uint8Array.of(n));
      for (const [, primitives] of both) {
        expect(texts.filter((text) => primitives.ed25519.verify(key, text, signature))).toEqual([]);
      }
    }
  });

  it('that are not reduced are refused', () => {
    for (const key of [le32(p + 2n), le32(p + 18n), withTopBit(le32(p + 3n))]) {
      expect(checkEd25519(key)).toBe('not-canonical');
    }
    expect(checkEd25519(new Uint8Array(33))).toBe('length');
  });

  it('that are no point, or outside the prime-order subgroup, are refused', async () => {
    expect(await checkSigningKey(le32(2n))).toBe('not-a-point');
    for (const key of withTorsion()) {
      expect(checkEd25519(key)).toBeUndefined();
      expect(await checkSigningKey(key)).toBe('torsion');
    }
  });

  it('that were made from a private key pass every rule, many at once', async () => {
    const keys = Array.from({ length: 20 }, () => nodePrimitives.ed25519.keyPair().publicKey);
    expect(await Promise.all(keys.map(checkSigningKey))).toEqual(keys.map(() => undefined));
  });
});

/** A good point plus each of the seven points of small order but zero. */
function withTorsion(): Uint8Array[] {
  const good = ed25519.Point.BASE.multiply(123456789n);
  return ED25519_TORSION_SUBGROUP.map((encoded) => ed25519.Point.fromHex(encoded))
    .filter((point) => !point.is0())
    .map((point) => good.add(point).toBytes());
}

describe('ML-KEM-768 keys', () => {
  it('pass when every coefficient is below 3329', () => {
    for (const [, { mlKem768 }] of both) expect(checkKemKey(mlKem768.keyPair().publicKey)).toBeUndefined();
    expect(checkKemKey(new Uint8Array(1183))).toBe('length');
  });

  it('are refused for one coefficient of 3329, wherever it is', () => {
    const { publicKey } = nodePrimitives.mlKem768.keyPair();
    for (const index of [0, 1, 2, 383, 766, 767]) {
      expect(checkKemKey(withCoefficient(publicKey, index, 3328))).toBeUndefined();
      const refused = withCoefficient(publicKey, index, 3329);
      expect(checkKemKey(refused)).toBe('modulus');
      expect(nodePrimitives.mlKem768.encapsulate(refused)).toBeUndefined();
    }
  });
});

function withCoefficient(publicKey: Uint8Array, index: number, value: number): Uint8Array {
  const key = publicKey.slice();
  const at = Math.floor(index / 2) * 3;
  const [a = 0, b = 0, c = 0] = key.slice(at, at + 3);
  const [low, high] = index % 2 === 0 ? [value, (b >> 4) | (c << 4)] : [a | ((b & 15) << 8), value];
  key.set([low & 255, (low >> 8) | ((high & 15) << 4), high >> 4], at);
  return key;
}
