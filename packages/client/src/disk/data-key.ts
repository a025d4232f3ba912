import { Buffer } from 'node:buffer';
import type { ScryptCost } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { WrongPassphraseError } from './key-store-errors.ts';

/** What opens a store: a passphrase, as a person types it, or 32 random bytes, as a key chain of the system keeps them. */
export type StoreSecret =
  | {
      readonly passphrase: string;
      /** What one try costs, for a passphrase that is set; 128 MiB by default. */
      readonly cost?: ScryptCost;
    }
  | { readonly key: Uint8Array };

/** The data key, sealed to a secret, with all but the secret that is needed to open it. */
export interface WrappedKey {
  readonly salt: Uint8Array;
  /** 0 each for a key. */
  readonly cost: ScryptCost;
  readonly sealed: Uint8Array;
}

const { aead, hkdfSha256, randomBytes, scrypt } = nodePrimitives;
const defaultCost: ScryptCost = { N: 2 ** 17, r: 8, p: 1 };
const none: ScryptCost = { N: 0, r: 0, p: 0 };
/** What somebody wrote into a file must not be able to take all of the memory. */
const mostMemory = 2 ** 30;
const nonce = new Uint8Array(12);
const utf8 = new TextEncoder();

export async function wrapDataKey(dataKey: Uint8Array, secret: StoreSecret): Promise<WrappedKey> {
  const salt = randomBytes(32);
  const cost = 'key' in secret ? none : (secret.cost ?? defaultCost);
  if ('passphrase' in secret && !isUsable(cost)) throw new RangeError('a cost that no store is opened with');
  const wrapping = await wrappingKey(secret, salt, cost);
  return { salt, cost, sealed: aead.seal(wrapping, nonce, dataKey, boundTo(salt, cost)) };
}

/** @throws WrongPassphraseError. */
export async function unwrapDataKey(wrapped: WrappedKey, secret: StoreSecret): Promise<Uint8Array> {
  const { salt, cost, sealed } = wrapped;
  const fits = 'key' in secret ? cost.N === 0 : isUsable(cost);
  if (!fits || salt.length !== 32 || sealed.length !== 48) throw new WrongPassphraseError();
  const wrapping = await wrappingKey(secret, salt, cost);
  const dataKey = aead.open(wrapping, nonce, sealed, boundTo(salt, cost));
  if (dataKey === undefined) throw new WrongPassphraseError();
  return dataKey;
}

/** A fresh salt makes each wrapping key new, so that its one nonce is never used twice. */
async function wrappingKey(secret: StoreSecret, salt: Uint8Array, cost: ScryptCost): Promise<Uint8Array> {
  if ('passphrase' in secret) return scrypt(utf8.encode(secret.passphrase.normalize('NFKC')), salt, cost, 32);
  if (secret.key.length !== 32) throw new RangeError('the key of a key store is 32 bytes');
  return hkdfSha256(secret.key, salt, utf8.encode('keytrail key store wrapping key'), 32);
}

function boundTo(salt: Uint8Array, { N, r, p }: ScryptCost): Uint8Array {
  return Buffer.concat([utf8.encode(`keytrail key store data key ${N} ${r} ${p} `), salt]);
}

function isUsable({ N, r, p }: ScryptCost): boolean {
  const powerOfTwo = Number.isSafeInteger(N) && N >= 2 && Number.isInteger(Math.log2(N));
  return powerOfTwo && r >= 1 && p >= 1 && p <= 16 && 128 * N * r <= mostMemory;
}
