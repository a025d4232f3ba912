import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createPrivateKey,
  createPublicKey,
  decapsulate,
  diffieHellman,
  encapsulate,
  hkdfSync,
  type KeyObject,
  randomBytes,
  scrypt,
  sign,
  verify,
} from 'node:crypto';
import { concatBytes } from './bytes.ts';
import { checkEd25519, checkKemKey, checkX25519 } from './key-checks.ts';
import { expectLength, type KeyPair, lengths, type Primitives } from './primitives.ts';
import { isWellFormedSignature } from './signature-checks.ts';

/** What stands before the raw key in PKCS #8 and SubjectPublicKeyInfo; ML-KEM in its seed form (RFC 9935). */
const der = {
  x25519: prefixes('302e020100300506032b656e04220420', '302a300506032b656e032100', 32),
  ed25519: prefixes('302e020100300506032b657004220420', '302a300506032b6570032100', 32),
  mlKem768: prefixes(
    '3054020100300b060960864801650304040204428040',
    '308204b2300b0609608648016503040402038204a100',
    lengths.kemPublicKey,
  ),
};

type Kind = (typeof der)['x25519'];

function prefixes(pkcs8: string, spki: string, publicKeyLength: number) {
  return { pkcs8: Buffer.from(pkcs8, 'hex'), spki: Buffer.from(spki, 'hex'), publicKeyLength };
}

function importPrivate(kind: Kind, raw: Uint8Array): KeyObject {
  return createPrivateKey({ key: Buffer.concat([kind.pkcs8, raw]), format: 'der', type: 'pkcs8' });
}

function importPublic(kind: Kind, raw: Uint8Array): KeyObject {
  return createPublicKey({ key: Buffer.concat([kind.spki, raw]), format: 'der', type: 'spki' });
}

/** Imports a raw Ed25519 public key of 32 bytes. */
export function importEd25519PublicKey(raw: Uint8Array): KeyObject {
  return importPublic(der.ed25519, raw);
}

function rawPublic(kind: Kind, privateKey: Uint8Array): Uint8Array {
  const spki = createPublicKey(importPrivate(kind, privateKey)).export({ format: 'der', type: 'spki' });
  return plain(spki.subarray(spki.length - kind.publicKeyLength));
}

/** A copy that is no Buffer: Buffers of Node share memory and behave otherwise than Uint8Arrays. */
function plain(bytes: Uint8Array | ArrayBuffer): Uint8Array {
  return new Uint8Array(bytes);
}

function keyPair(kind: Kind, privateKeyLength: number): KeyPair {
  const privateKey = plain(randomBytes(privateKeyLength));
  return { publicKey: rawPublic(kind, privateKey), privateKey };
}

const cipher = 'chacha20-poly1305';

/** Key suite 1 on node:crypto: for services, command-line tools and clients on Node 24. */
export const nodePrimitives: Primitives = {
  randomBytes: (length) => plain(randomBytes(length)),
  sha256: (bytes) => plain(createHash('sha256').update(bytes).digest()),
  hkdfSha256: (secret, salt, info, length) => plain(hkdfSync('sha256', secret, salt, info, length)),
  scrypt: (secret, salt, { N, r, p }, length) =>
    new Promise((resolve, reject) => {
      // Node counts a little more than 128 · N · r.
      const maxmem = 256 * N * r;
      scrypt(secret, salt, length, { N, r, p, maxmem }, (error, hash) =>
        error ? reject(error) : resolve(plain(hash)),
      );
    }),
  x25519: {
    keyPair: () => keyPair(der.x25519, lengths.x25519Key),
    publicKey(privateKey) {
      expectLength(privateKey, lengths.x25519Key, 'X25519 private key');
      return rawPublic(der.x25519, privateKey);
    },
    sharedSecret(privateKey, publicKey) {
      expectLength(privateKey, lengths.x25519Key, 'X25519 private key');
      expectLength(publicKey, lengths.x25519Key, 'X25519 public key');
      if (checkX25519(publicKey) === 'low-order') return undefined;
      return plain(
        diffieHellman({
          privateKey: importPrivate(der.x25519, privateKey),
          publicKey: importPublic(der.x25519, publicKey),
        }),
      );
    },
  },
  ed25519: {
    keyPair: () => keyPair(der.ed25519, lengths.ed25519Key),
    publicKey(privateKey) {
      expectLength(privateKey, lengths.ed25519Key, 'Ed25519 private key');
      return rawPublic(der.ed25519, privateKey);
    },
    sign(privateKey, text) {
      expectLength(privateKey, lengths.ed25519Key, 'Ed25519 private key');
      return plain(sign(null, text, importPrivate(der.ed25519, privateKey)));
    },
    verify(publicKey, text, signature) {
      if (checkEd25519(publicKey) !== undefined || !isWellFormedSignature(signature)) return false;
      return verify(null, text, importEd25519PublicKey(publicKey), signature);
    },
  },
  mlKem768: {
    keyPair: () => keyPair(der.mlKem768, lengths.kemSeed),
    publicKey(seed) {
      expectLength(seed, lengths.kemSeed, 'ML-KEM-768 seed');
      return rawPublic(der.mlKem768, seed);
    },
    encapsulate(publicKey) {
      expectLength(publicKey, lengths.kemPublicKey, 'ML-KEM-768 public key');
      if (checkKemKey(publicKey) !== undefined) return undefined;
      const { ciphertext, sharedKey } = encapsulate(importPublic(der.mlKem768, publicKey));
      return { ciphertext: plain(ciphertext), sharedSecret: plain(sharedKey) };
    },
    decapsulate(seed, ciphertext) {
      expectLength(seed, lengths.kemSeed, 'ML-KEM-768 seed');
      expectLength(ciphertext, lengths.kemCiphertext, 'ML-KEM-768 ciphertext');
      return plain(decapsulate(importPrivate(der.mlKem768, seed), ciphertext));
    },
  },
  aead: {
    seal(key, nonce, plaintext, associatedData) {
      const sealer = createCipheriv(cipher, key, nonce, { authTagLength: lengths.aeadTag });
      sealer.setAAD(associatedData, { plaintextLength: plaintext.length });
      return concatBytes(sealer.update(plaintext), sealer.final(), sealer.getAuthTag());
    },
    open(key, nonce, ciphertext, associatedData) {
      const length = ciphertext.length - lengths.aeadTag;
      if (length < 0) return undefined;
      const opener = createDecipheriv(cipher, key, nonce, { authTagLength: lengths.aeadTag });
      opener.setAAD(associatedData, { plaintextLength: length });
      opener.setAuthTag(ciphertext.subarray(length));
      try {
        return concatBytes(opener.update(ciphertext.subarray(0, length)), opener.final());
      } catch {
        return undefined;
      }
    },
  },
};
