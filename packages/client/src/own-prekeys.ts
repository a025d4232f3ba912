import {
  createKemPrekey,
  createOneTimePrekey,
  type KeyPair,
  type NewPrekey,
  type Primitives,
  prekeyText,
  type Ref,
  type SignedPrekeyKind,
} from '@keytrail/crypto';
import type { Clock } from './clock.ts';
import type { KeyStore, StoredPrekey, StoredPrekeyKind } from './key-store.ts';

export interface PrekeyMakers {
  readonly primitives: Primitives;
  readonly store: KeyStore;
  readonly clock: Clock;
}

/** How many of each pool. */
export interface PoolCounts {
  readonly oneTime: number;
  readonly kem: number;
}

interface Signer extends Ref {
  readonly signingKey: KeyPair;
}

/** Makes one-time prekeys; their private keys are in the store before anything of them is sent. */
export async function makeOneTimePrekeys(
  { primitives, store, clock }: PrekeyMakers,
  signer: Signer,
  count: PoolCounts,
) {
  const ids = await reservePrekeyIds(store, count.oneTime + count.kem);
  const oneTime = ids.slice(0, count.oneTime).map((keyId) => createOneTimePrekey(primitives, keyId));
  const kem = ids.slice(count.oneTime).map((keyId) => createKemPrekey(primitives, signer, keyId, 'kem-one-time'));
  const madeAt = clock.now();
  await store.savePrekeys([
    ...oneTime.map((prekey) => storedPrekey('one-time', prekey, madeAt)),
    ...kem.map((prekey) => storedPrekey('kem-one-time', prekey, madeAt)),
  ]);
  return {
    oneTimePrekeys: oneTime.map(({ upload }) => upload),
    oneTimeKemPrekeys: kem.map(({ upload }) => upload),
  };
}

const idCounter = 'prekey ids';

/** Ids that no prekey of this device has had, of whatever kind. */
export async function reservePrekeyIds(store: KeyStore, count: number): Promise<number[]> {
  const first = Number(await store.reserve(idCounter, count));
  return Array.from({ length: count }, (_, i) => first + 1 + i);
}

/** From now on ids are above `highest`: an older copy of the store would give ids again that the service knows. */
export async function skipPrekeyIds(store: KeyStore, highest: number): Promise<void> {
  const [next] = await reservePrekeyIds(store, 1);
  if (next !== undefined && next < highest) await store.reserve(idCounter, highest - next);
}

export function storedPrekey(
  kind: StoredPrekeyKind,
  { keyId, keyPair }: NewPrekey<unknown>,
  madeAt: Date,
): StoredPrekey {
  return { kind, keyId, keyPair, madeAt };
}

/** The public half of a prekey as it is uploaded. */
export function signPrekey(
  { ed25519 }: Primitives,
  device: Signer,
  kind: SignedPrekeyKind,
  { keyId, keyPair: { publicKey } }: StoredPrekey,
) {
  const signature = ed25519.sign(device.signingKey.privateKey, prekeyText(kind, device, { keyId, publicKey }));
  return { keyId, publicKey, signature };
}
