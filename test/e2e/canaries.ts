import { Buffer } from 'node:buffer';
import type { KeyPair, Primitives } from '@keytrail/crypto';

/** Something recognisable that must not get out, and what it is. */
interface Needle {
  readonly what: string;
  readonly text: string;
}

export interface Find {
  readonly what: string;
  readonly where: string;
}

const headLength = 12;

/** Secrets that a test plants, in every form in which one could get out: as they are, base64 and base64url at any offset, hex, lists of numbers. */
export class Canaries {
  readonly #needles = new Map<string, Needle[]>();
  readonly #planted = new Set<string>();
  readonly #texts: string[] = [];

  get planted(): number {
    return this.#planted.size;
  }

  /** The texts that were planted as such. */
  texts(): readonly string[] {
    return this.#texts;
  }

  text(what: string, text: string): void {
    if (this.#planted.has(text)) return;
    this.#planted.add(text);
    this.#texts.push(text);
    this.#add(what, text);
    this.#addEncoded(what, Buffer.from(text));
  }

  bytes(what: string, bytes: Uint8Array): void {
    const raw = Buffer.from(bytes);
    const key = raw.toString('latin1');
    if (raw.length < 16 || this.#planted.has(key)) return;
    this.#planted.add(key);
    this.#add(what, key);
    this.#addEncoded(what, raw);
  }

  /** What of it stands in a text; bytes are told as latin1. Each thing once per place. */
  findIn(where: string, text: string): Find[] {
    const found = new Set<string>();
    for (let at = 0; at + headLength <= text.length; at += 1)
      for (const needle of this.#needles.get(text.slice(at, at + headLength)) ?? [])
        if (text.startsWith(needle.text, at)) found.add(needle.what);
    return [...found].map((what) => ({ what, where }));
  }

  #addEncoded(what: string, raw: Buffer): void {
    this.#add(`${what}, hex`, raw.toString('hex'));
    this.#add(`${what}, HEX`, raw.toString('hex').toUpperCase());
    this.#add(`${what}, numbers`, [...raw.subarray(0, 12)].join(','));
    // As `{"0":12,"1":7…`, which JSON makes of bytes.
    this.#add(`${what}, JSON`, JSON.stringify({ ...[...raw.subarray(0, 12)] }).slice(0, -1));
    for (let offset = 0; offset < 3; offset += 1) {
      // In the middle of other bytes only whole groups of three are told alike.
      const middle = raw.subarray(offset, raw.length - ((raw.length - offset) % 3));
      this.#add(`${what}, base64`, middle.toString('base64'));
      this.#add(`${what}, base64`, middle.toString('base64url'));
    }
  }

  #add(what: string, text: string): void {
    if (text.length < headLength) throw new Error(`${what} is too short to be told from chance`);
    const head = text.slice(0, headLength);
    this.#needles.set(head, [...(this.#needles.get(head) ?? []), { what, text }]);
  }
}

/** Primitives that plant every secret they make or are given: private keys, shared secrets, derived keys, what is sealed. */
export function plantingPrimitives(primitives: Primitives, canaries: Canaries): Primitives {
  const ofPair = (what: string, pair: KeyPair) => {
    canaries.bytes(`private ${what} key`, pair.privateKey);
    return pair;
  };
  const planted = <T extends Uint8Array | undefined>(what: string, secret: T): T => {
    if (secret !== undefined) canaries.bytes(what, secret);
    return secret;
  };
  const { x25519, ed25519, mlKem768, aead } = primitives;
  return {
    ...primitives,
    randomBytes: (length) => {
      const bytes = primitives.randomBytes(length);
      // Shorter ones are ids and nonces.
      return length >= 32 ? planted('random key', bytes) : bytes;
    },
    hkdfSha256: (...rest) => planted('derived key', primitives.hkdfSha256(...rest)),
    x25519: {
      ...x25519,
      keyPair: () => ofPair('X25519', x25519.keyPair()),
      sharedSecret: (...rest) => planted('shared secret', x25519.sharedSecret(...rest)),
    },
    ed25519: { ...ed25519, keyPair: () => ofPair('Ed25519', ed25519.keyPair()) },
    mlKem768: {
      ...mlKem768,
      keyPair: () => ofPair('ML-KEM', mlKem768.keyPair()),
      encapsulate: (publicKey) => {
        const made = mlKem768.encapsulate(publicKey);
        if (made) planted('encapsulated secret', made.sharedSecret);
        return made;
      },
      decapsulate: (...rest) => planted('encapsulated secret', mlKem768.decapsulate(...rest)),
    },
    aead: {
      ...aead,
      seal: (key, nonce, plaintext, associatedData) => {
        planted('sealing key', key);
        planted('sealed text', plaintext);
        return aead.seal(key, nonce, plaintext, associatedData);
      },
    },
  };
}
