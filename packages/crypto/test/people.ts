import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  type Device,
  DeviceSchema,
  HistoryPolicy,
  type KemPrekey,
  MemberRole,
  type OneTimePrekey,
  type PrekeyBundle,
  PrekeyBundleSchema,
  PrekeyKind,
  type SignedPrekey,
} from '@keytrail/contracts';
import {
  certifyDevice,
  createKemPrekey,
  createOneTimePrekey,
  createRootKey,
  createSignedPrekey,
  type DeviceKeys,
  type KeyPair,
  keyCommitment,
  type NewPrekey,
  type Opener,
  type Primitives,
  rosterHash,
  type Sealer,
  signHeader,
} from '@keytrail/crypto';

export const certifiedAt = new Date('2026-01-02T03:04:05.678Z');

/** A device with all its private keys, and what a server would know of it. */
export interface TestDevice {
  keys: DeviceKeys;
  rootKey: KeyPair;
  sealer: Sealer;
  signedPrekey: NewPrekey<SignedPrekey>;
  oneTimePrekey: NewPrekey<OneTimePrekey>;
  oneTimeKemPrekey: NewPrekey<KemPrekey>;
  lastResortPrekey: NewPrekey<KemPrekey>;
  bundle: PrekeyBundle;
  listed: Device;
  opener: Opener;
  lastResortOpener: Opener;
}

export function makeDevice(
  primitives: Primitives,
  userId: string,
  deviceId: string,
  rootKey: KeyPair = createRootKey(primitives),
): TestDevice {
  const identityKey = primitives.x25519.keyPair();
  const signingKey = primitives.ed25519.keyPair();
  const keys = { userId, deviceId, identityKey: identityKey.publicKey, signingKey: signingKey.publicKey };
  const certificate = certifyDevice(primitives, rootKey, keys, certifiedAt);
  const sealer = { userId, deviceId, identityKey, signingKey, certificate };
  const signedPrekey = createSignedPrekey(primitives, sealer, 1);
  const oneTimePrekey = createOneTimePrekey(primitives, 7);
  const lastResortPrekey = createKemPrekey(primitives, sealer, 1, 'kem-last-resort');
  const oneTimeKemPrekey = createKemPrekey(primitives, sealer, 2, 'kem-one-time');
  const bundle = create(PrekeyBundleSchema, {
    ...keys,
    certificate,
    signedPrekey: signedPrekey.upload,
    oneTimePrekey: oneTimePrekey.upload,
    kemPrekey: oneTimeKemPrekey.upload,
    kemPrekeyKind: PrekeyKind.ONE_TIME,
  });
  const listed = create(DeviceSchema, {
    ...keys,
    certificate,
    signedPrekey: signedPrekey.upload,
    lastResortPrekey: lastResortPrekey.upload,
  });
  const own = { userId, deviceId, identityKey, signingKey: signingKey.publicKey, signedPrekey: signedPrekey.keyPair };
  const opener = { ...own, oneTimePrekey: oneTimePrekey.keyPair, kemPrekey: oneTimeKemPrekey.keyPair };
  const lastResortOpener = { ...own, kemPrekey: lastResortPrekey.keyPair };
  return {
    keys,
    rootKey,
    sealer,
    signedPrekey,
    oneTimePrekey,
    oneTimeKemPrekey,
    lastResortPrekey,
    bundle,
    listed,
    opener,
    lastResortOpener,
  };
}

export const conversationId = '0c2f5c1e-4f5e-8a3b-9d2c-6b7a8f9e0d1c';
export const sessionId = 'session-1';

/** A session of epoch 1 that `initiator` makes, with its session key and the ephemeral key of attempt 0. */
export function makeSession(primitives: Primitives, initiator: TestDevice) {
  const sessionKey = primitives.randomBytes(32);
  const ephemeralKey = primitives.x25519.keyPair();
  const { sealer } = initiator;
  const signed = signHeader(primitives, sealer.signingKey, {
    suite: 1,
    conversationId,
    sessionId,
    epoch: 1n,
    rosterVersion: 1n,
    rosterHash: rosterHash([{ userId: sealer.userId, role: MemberRole.ADMIN }]),
    deviceLists: [{ userId: sealer.userId, version: 1n }],
    initiator: { userId: sealer.userId, deviceId: sealer.deviceId },
    initiatorIdentityKey: sealer.identityKey.publicKey,
    initiatorSigningKey: sealer.signingKey.publicKey,
    initiatorEphemeralKey: ephemeralKey.publicKey,
    keyCommitment: keyCommitment(sessionKey, { conversationId, sessionId, epoch: 1n }),
    historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
    createdAt: timestampFromMs(certifiedAt.getTime()),
  });
  return { ...signed, sessionKey, ephemeralKey };
}
