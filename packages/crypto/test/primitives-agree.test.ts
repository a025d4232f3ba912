import { noblePrimitives } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const noble = noblePrimitives;
const node = nodePrimitives;
const runs = { numRuns: 25 };

describe('noble and node:crypto agree', () => {
  it('on SHA-256 and HKDF', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 300 }),
        fc.uint8Array({ maxLength: 70 }),
        fc.uint8Array({ maxLength: 1024 }),
        fc.integer({ min: 1, max: 200 }),
        (secret, salt, info, length) => {
          expect(noble.sha256(secret)).toEqual(node.sha256(secret));
          expect(noble.hkdfSha256(secret, salt, info, length)).toEqual(node.hkdfSha256(secret, salt, info, length));
        },
      ),
    );
  });

  it('on X25519, for any private key and any public key, also one that is no point', () => {
    fc.assert(
      fc.property(bytes(32), bytes(32), (privateKey, anyKey) => {
        expect(noble.x25519.publicKey(privateKey)).toEqual(node.x25519.publicKey(privateKey));
        expect(noble.x25519.sharedSecret(privateKey, anyKey)).toEqual(node.x25519.sharedSecret(privateKey, anyKey));
      }),
      runs,
    );
  });

  it('on Ed25519 keys, signatures, and what does not verify', () => {
    fc.assert(
      fc.property(bytes(32), fc.uint8Array(), fc.integer({ min: 0, max: 511 }), (privateKey, text, bit) => {
        const publicKey = noble.ed25519.publicKey(privateKey);
        expect(publicKey).toEqual(node.ed25519.publicKey(privateKey));
        const signature = noble.ed25519.sign(privateKey, text);
        expect(signature).toEqual(node.ed25519.sign(privateKey, text));
        expect(noble.ed25519.verify(publicKey, text, signature)).toBe(true);
        expect(node.ed25519.verify(publicKey, text, signature)).toBe(true);
        const wrong = flip(signature, bit);
        expect(noble.ed25519.verify(publicKey, text, wrong)).toBe(false);
        expect(node.ed25519.verify(publicKey, text, wrong)).toBe(false);
      }),
      runs,
    );
  });

  it('on random bytes as Ed25519 keys and signatures: false, never an error', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 40 }),
        fc.uint8Array({ maxLength: 70 }),
        bytes(32),
        bytes(64),
        (a, b, c, d) => {
          for (const primitives of [noble, node]) {
            expect(primitives.ed25519.verify(a, c, b)).toBe(false);
            expect(primitives.ed25519.verify(c, a, d)).toBe(false);
          }
        },
      ),
    );
  });

  it('on ML-KEM-768: the same key from a seed, and each decapsulates what the other encapsulates', () => {
    fc.assert(
      fc.property(bytes(64), fc.integer({ min: 0, max: 1088 * 8 - 1 }), (seed, bit) => {
        const publicKey = noble.mlKem768.publicKey(seed);
        expect(publicKey).toEqual(node.mlKem768.publicKey(seed));
        for (const [from, to] of [
          [noble, node],
          [node, noble],
        ] as const) {
          const encapsulation = from.mlKem768.encapsulate(publicKey);
          if (encapsulation === undefined) throw new Error('refused');
          const { ciphertext, sharedSecret } = encapsulation;
          expect(to.mlKem768.decapsulate(seed, ciphertext)).toEqual(sharedSecret);
          const wrong = flip(ciphertext, bit);
          expect(to.mlKem768.decapsulate(seed, wrong)).not.toEqual(sharedSecret);
          expect(to.mlKem768.decapsulate(seed, wrong)).toEqual(from.mlKem768.decapsulate(seed, wrong));
        }
      }),
      runs,
    );
  });

  it('on a KEM key that fails the modulus check', () => {
    const { publicKey } = node.mlKem768.keyPair();
    publicKey.set([0xff, 0xff, 0xff], 600);
    expect(noble.mlKem768.encapsulate(publicKey)).toBeUndefined();
    expect(node.mlKem768.encapsulate(publicKey)).toBeUndefined();
  });

  it('on ChaCha20-Poly1305, and on every ciphertext that was touched', () => {
    fc.assert(
      fc.property(bytes(32), bytes(12), fc.uint8Array(), fc.uint8Array(), fc.nat(), (key, nonce, text, data, at) => {
        const sealed = noble.aead.seal(key, nonce, text, data);
        expect(sealed).toEqual(node.aead.seal(key, nonce, text, data));
        const wrong = flip(sealed, at % (sealed.length * 8));
        for (const { aead } of [noble, node]) {
          expect(aead.open(key, nonce, sealed, data)).toEqual(text);
          expect(aead.open(key, nonce, wrong, data)).toBeUndefined();
          expect(aead.open(key, nonce, sealed.slice(1), data)).toBeUndefined();
          expect(aead.open(key, nonce, sealed, Uint8Array.from([...data, 0]))).toBeUndefined();
          expect(aead.open(key, nonce, new Uint8Array(15), data)).toBeUndefined();
        }
      }),
    );
  });

  it.each([
    ['noble', noble],
    ['node', node],
  ])('on key pairs: %s makes pairs that fit, never twice the same', (_name, primitives) => {
    const { x25519, ed25519, mlKem768 } = primitives;
    for (const kind of [x25519, ed25519, mlKem768]) {
      const pair = kind.keyPair();
      expect(kind.publicKey(pair.privateKey)).toEqual(pair.publicKey);
      expect(kind.keyPair()).not.toEqual(pair);
    }
  });

  it('on lengths that are wrong: a RangeError', () => {
    for (const { x25519, mlKem768 } of [noble, node]) {
      expect(() => x25519.sharedSecret(new Uint8Array(31), new Uint8Array(32))).toThrow(RangeError);
      expect(() => x25519.sharedSecret(new Uint8Array(32), new Uint8Array(33))).toThrow(RangeError);
      expect(() => mlKem768.encapsulate(new Uint8Array(1183))).toThrow(RangeError);
      expect(() => mlKem768.decapsulate(new Uint8Array(64), new Uint8Array(1087))).toThrow(RangeError);
      expect(() => mlKem768.decapsulate(new Uint8Array(2400), new Uint8Array(1088))).toThrow(RangeError);
    }
  });
});

function flip(bytes: Uint8Array, bit: number): Uint8Array {
  const flipped = bytes.slice();
  flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
  return flipped;
}
