import { create } from '@bufbuild/protobuf';
import { type CheckKeysRequest, CheckKeysRequestSchema } from '@keytrail/contracts';
import { fingerprintOf, type PrekeyHash, publicKeyHash, publishedKeysDigest } from '@keytrail/crypto';
import type { KeyStore, StoredPrekey, StoredPrekeyKind } from './key-store.ts';
import type { RegisteredDevice } from './own-device.ts';

/** As many of each kind as CheckKeys takes. */
const mostCompared = 2_000;

/** What this device holds, for CheckKeys; undefined when the store has lost a current signed or last-resort prekey. */
export async function heldKeys(store: KeyStore, own: RegisteredDevice): Promise<CheckKeysRequest | undefined> {
  const stored = await store.device();
  if (stored === undefined) return undefined;
  const [signed, lastResort, oneTime, kem] = await Promise.all([
    store.prekey('signed', stored.signedPrekeyId),
    store.prekey('kem-last-resort', stored.lastResortPrekeyId),
    inUse(store, 'one-time'),
    inUse(store, 'kem-one-time'),
  ]);
  if (signed === undefined || lastResort === undefined) return undefined;
  const signedPrekey = hashed(signed);
  const lastResortPrekey = hashed(lastResort);
  const oneTimePrekeys = oneTime.map(hashed);
  const oneTimeKemPrekeys = kem.map(hashed);
  const digest = publishedKeysDigest({
    userId: own.userId,
    deviceId: own.deviceId,
    identityKey: own.identityKey.publicKey,
    signingKey: own.signingKey.publicKey,
    certificateSignature: own.certificate.signature,
    signedPrekey,
    lastResortPrekey,
    oneTimePrekeys,
    oneTimeKemPrekeys,
  });
  return create(CheckKeysRequestSchema, {
    digest,
    signedPrekey: fingerprint(signedPrekey),
    lastResortPrekey: fingerprint(lastResortPrekey),
    oneTimePrekeys: oneTimePrekeys.map(fingerprint),
    oneTimeKemPrekeys: oneTimeKemPrekeys.map(fingerprint),
  });
}

/** Those that may be handed out or are on their way: not the retired ones. When there are too many, the newest. */
async function inUse(store: KeyStore, kind: StoredPrekeyKind): Promise<StoredPrekey[]> {
  return (await store.prekeys(kind)).filter(({ keepUntil }) => keepUntil === undefined).slice(-mostCompared);
}

function hashed({ keyId, keyPair }: StoredPrekey): PrekeyHash {
  return { keyId, hash: publicKeyHash(keyPair.publicKey) };
}

function fingerprint(prekey: PrekeyHash) {
  return { keyId: prekey.keyId, fingerprint: fingerprintOf(prekey) };
}
