/**
 * A private key and its public key. X25519 and Ed25519: 32 bytes each (Ed25519: the seed of RFC 8032 §5.1.5).
 * ML-KEM-768: the public key is the 1184-byte encapsulation key, the private key the 64-byte seed d‖z of FIPS 203 §7.1.
 */
export interface KeyPair {
  readonly publicKey: Uint8Array;
  readonly privateKey: Uint8Array;
}

/** 128 · N · r bytes of memory. */
export interface ScryptCost {
  readonly N: number;
  readonly r: number;
  readonly p: number;
}

export interface Encapsulation {
  /** 1088 bytes. */
  readonly ciphertext: Uint8Array;
  /** 32 bytes. */
  readonly sharedSecret: Uint8Array;
}

/**
 * The primitives of key suite 1. Two implementations: `noblePrimitives` runs everywhere, `nodePrimitives` on Node.
 * They agree byte for byte, also in what they refuse. Hostile input gives `undefined` or `false`; a length that is wrong is a
 * RangeError, because callers check lengths where the bytes come in.
 */
export interface Primitives {
  /** Cryptographically secure. */
  randomBytes(length: number): Uint8Array;
  /** FIPS 180-4, 32 bytes. */
  sha256(bytes: Uint8Array): Uint8Array;
  /** RFC 5869 with SHA-256. `info` is at most 1024 bytes. */
  hkdfSha256(secret: Uint8Array, salt: Uint8Array, info: Uint8Array, length: number): Uint8Array;
  /** RFC 7914; gives way to the event loop while it works. */
  scrypt(secret: Uint8Array, salt: Uint8Array, cost: ScryptCost, length: number): Promise<Uint8Array>;
  /** RFC 7748 §5. */
  readonly x25519: {
    keyPair(): KeyPair;
    publicKey(privateKey: Uint8Array): Uint8Array;
    /** 32 bytes; undefined when it would be all zero, that is for a public key of low order. */
    sharedSecret(privateKey: Uint8Array, publicKey: Uint8Array): Uint8Array | undefined;
  };
  /** RFC 8032 §5.1, pure Ed25519. */
  readonly ed25519: {
    keyPair(): KeyPair;
    publicKey(privateKey: Uint8Array): Uint8Array;
    sign(privateKey: Uint8Array, text: Uint8Array): Uint8Array;
    /**
     * False also for public keys that are not canonical or of low order (under those, one signature fits many texts), and for signatures with
     * such an R or with S ≥ L. The equation is the one without the cofactor.
     */
    verify(publicKey: Uint8Array, text: Uint8Array, signature: Uint8Array): boolean;
  };
  /** FIPS 203, ML-KEM-768. */
  readonly mlKem768: {
    keyPair(): KeyPair;
    publicKey(seed: Uint8Array): Uint8Array;
    /** Undefined when the key fails the modulus check of FIPS 203 §7.2. */
    encapsulate(publicKey: Uint8Array): Encapsulation | undefined;
    /** Never fails: a wrong ciphertext gives an unrelated secret (implicit rejection). */
    decapsulate(seed: Uint8Array, ciphertext: Uint8Array): Uint8Array;
  };
  /** ChaCha20-Poly1305, RFC 8439 §2.8: 32-byte key, 12-byte nonce, 16-byte tag at the end. */
  readonly aead: {
    seal(key: Uint8Array, nonce: Uint8Array, plaintext: Uint8Array, associatedData: Uint8Array): Uint8Array;
    /** Undefined when the tag does not verify. */
    open(
      key: Uint8Array,
      nonce: Uint8Array,
      ciphertext: Uint8Array,
      associatedData: Uint8Array,
    ): Uint8Array | undefined;
  };
}

/** The key suite of these primitives, as it stands in certificates and headers. */
export const suite = 1;

export const lengths = {
  x25519Key: 32,
  ed25519Key: 32,
  ed25519Signature: 64,
  kemPublicKey: 1184,
  kemSeed: 64,
  kemCiphertext: 1088,
  sessionKey: 32,
  sealedSessionKey: 48,
  hash: 32,
  aeadTag: 16,
} as const;

export function expectLength(bytes: Uint8Array, length: number, what: string): void {
  if (bytes.length !== length) throw new RangeError(`${what} is ${bytes.length} bytes, not ${length}`);
}
