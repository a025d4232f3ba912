import { chacha20poly1305 } from '@noble/ciphers/chacha.js';
import { ed25519, x25519 } from '@noble/curves/ed25519.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { scryptAsync } from '@noble/hashes/scrypt.js';
import { sha256, sha512 } from '@noble/hashes/sha2.js';
import { randomBytes } from '@noble/hashes/utils.js';
import { ml_kem768 } from '@noble/post-quantum/ml-kem.js';
import { concatBytes, equalBytes, littleEndian } from './bytes.ts';
import { checkEd25519, checkKemKey, checkX25519 } from './key-checks.ts';
import { expectLength, lengths, type Primitives } from './primitives.ts';
import { isWellFormedSignature } from './signature-checks.ts';

/** Key suite 1 in audited JavaScript: for browsers, and wherever node:crypto is not. */
export const noblePrimitives: Primitives = {
  randomBytes: (length) => randomBytes(length),
  sha256: (bytes) => sha256(bytes),
  hkdfSha256: (secret, salt, info, length) => hkdf(sha256, secret, salt, info, length),
  scrypt: (secret, salt, { N, r, p }, length) => scryptAsync(secret, salt, { N, r, p, dkLen: length }),
  x25519: {
    keyPair() {
      const { publicKey, secretKey } = x25519.keygen();
      return { publicKey, privateKey: secretKey };
    },
    publicKey: (privateKey) => x25519.getPublicKey(privateKey),
    sharedSecret(privateKey, publicKey) {
      expectLength(privateKey, lengths.x25519Key, 'X25519 private key');
      expectLength(publicKey, lengths.x25519Key, 'X25519 public key');
      return checkX25519(publicKey) === 'low-order' ? undefined : x25519.getSharedSecret(privateKey, publicKey);
    },
  },
  ed25519: {
    keyPair() {
      const { publicKey, secretKey } = ed25519.keygen();
      return { publicKey, privateKey: secretKey };
    },
    publicKey: (privateKey) => ed25519.getPublicKey(privateKey),
    sign: (privateKey, text) => ed25519.sign(text, privateKey),
    verify(publicKey, text, signature) {
      return (
        checkEd25519(publicKey) === undefined && isWellFormedSignature(signature) && holds(publicKey, text, signature)
      );
    },
  },
  mlKem768: {
    keyPair() {
      const seed = randomBytes(lengths.kemSeed);
      return { publicKey: ml_kem768.keygen(seed).publicKey, privateKey: seed };
    },
    publicKey: (seed) => ml_kem768.keygen(seed).publicKey,
    encapsulate(publicKey) {
      expectLength(publicKey, lengths.kemPublicKey, 'ML-KEM-768 public key');
      if (checkKemKey(publicKey) !== undefined) return undefined;
      const { cipherText, sharedSecret } = ml_kem768.encapsulate(publicKey);
      return { ciphertext: cipherText, sharedSecret };
    },
    decapsulate(seed, ciphertext) {
      expectLength(seed, lengths.kemSeed, 'ML-KEM-768 seed');
      expectLength(ciphertext, lengths.kemCiphertext, 'ML-KEM-768 ciphertext');
      return ml_kem768.decapsulate(ciphertext, ml_kem768.keygen(seed).secretKey);
    },
  },
  aead: {
    seal: (key, nonce, plaintext, associatedData) => chacha20poly1305(key, nonce, associatedData).encrypt(plaintext),
    open(key, nonce, ciphertext, associatedData) {
      if (ciphertext.length < lengths.aeadTag) return undefined;
      const cipher = chacha20poly1305(key, nonce, associatedData);
      try {
        return cipher.decrypt(ciphertext);
      } catch {
        return undefined;
      }
    },
  },
};

/**
 * RFC 8032 §5.1.7 without the cofactor: S·B − k·A must be R, to the bit. The library's own `verify` multiplies by the cofactor and so takes
 * signatures of R + T, T of small order, which node:crypto refuses: a message would verify on one client and not on another.
 */
function holds(publicKey: Uint8Array, text: Uint8Array, signature: Uint8Array): boolean {
  const { Point } = ed25519;
  const encodedR = signature.subarray(0, 32);
  let key: typeof Point.BASE;
  try {
    key = Point.fromBytes(publicKey);
  } catch {
    return false;
  }
  const k = Point.Fn.create(littleEndian(sha512(concatBytes(encodedR, publicKey, text))));
  const expected = Point.BASE.multiplyUnsafe(littleEndian(signature.subarray(32))).subtract(key.multiplyUnsafe(k));
  return equalBytes(expected.toBytes(), encodedR);
}
