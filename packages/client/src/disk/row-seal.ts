import { Buffer } from 'node:buffer';
import { createHmac } from 'node:crypto';
import { nodePrimitives } from '@keytrail/crypto/node';

/** A row as it stands in the file: nothing in it tells what it is of whom. */
export interface SealedRow {
  /** 32 bytes. */
  readonly id: Uint8Array;
  /** 32 bytes, the same for rows that are listed together; empty for the others. */
  readonly grouping: Uint8Array;
  readonly value: Uint8Array;
}

const { aead, hkdfSha256, randomBytes } = nodePrimitives;
const nonce = new Uint8Array(12);
const saltBytes = 32;
const utf8 = new TextEncoder();
const empty = new Uint8Array();

/** The names and the values of rows under one data key. */
export class RowSeal {
  readonly #sealing: Uint8Array;
  readonly #naming: Uint8Array;
  readonly #summing: Uint8Array;

  /** 32 bytes, random. */
  constructor(dataKey: Uint8Array) {
    const derived = (purpose: string) => hkdfSha256(dataKey, empty, utf8.encode(`keytrail key store ${purpose}`), 32);
    this.#sealing = derived('sealing');
    this.#naming = derived('naming');
    this.#summing = derived('summing');
  }

  id(kind: string, name: string): Uint8Array {
    return this.#named(`row ${kind} ${name}`);
  }

  grouping(kind: string): Uint8Array {
    return this.#named(`group ${kind}`);
  }

  /** Each value has a key of its own, from 32 fresh bytes, so that no nonce is ever used twice, however many are written. */
  seal(id: Uint8Array, grouping: Uint8Array, plain: Uint8Array): Uint8Array {
    const salt = randomBytes(saltBytes);
    return Buffer.concat([salt, aead.seal(this.#keyOf(salt), nonce, plain, boundTo(id, grouping))]);
  }

  /** Undefined when it was not sealed for this very row. */
  open({ id, grouping, value }: SealedRow): Uint8Array | undefined {
    if (value.length < saltBytes + 16) return undefined;
    const key = this.#keyOf(value.subarray(0, saltBytes));
    return aead.open(key, nonce, value.subarray(saltBytes), boundTo(id, grouping));
  }

  /** 32 bytes; the sum of all rows by XOR tells whether they are the same rows. */
  summand({ id, grouping, value }: SealedRow): Uint8Array {
    return createHmac('sha256', this.#summing).update(boundTo(id, grouping)).update(value).digest();
  }

  #keyOf(salt: Uint8Array): Uint8Array {
    return hkdfSha256(this.#sealing, salt, empty, 32);
  }

  #named(text: string): Uint8Array {
    return createHmac('sha256', this.#naming).update(text).digest();
  }
}

/** Of fixed length in its first part, so that it can be read in one way only. */
function boundTo(id: Uint8Array, grouping: Uint8Array): Uint8Array {
  return Buffer.concat([id, Uint8Array.of(grouping.length), grouping]);
}
