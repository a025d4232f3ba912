import { create } from '@bufbuild/protobuf';
import {
  type Device,
  type DeviceCertificate,
  type KemPrekey,
  KemPrekeySchema,
  type OneTimePrekey,
  OneTimePrekeySchema,
  type PrekeyBundle,
  PrekeyKind,
  type SignedPrekey,
  SignedPrekeySchema,
} from '@keytrail/contracts';
import { type DeviceKeys, verifyDeviceCertificate } from './certificate.ts';
import type { Ref } from './hashes.ts';
import { checkEd25519, checkKemKey, checkX25519, type KeyProblem } from './key-checks.ts';
import { type KeyPair, type Primitives, suite } from './primitives.ts';
import { CertificateError, RecipientError } from './problems.ts';
import { type Statement, verifyStatement } from './statement.ts';
import { transcript } from './transcript.ts';

/** What a prekey signature says of the key. A one-time KEM prekey cannot be passed off as a last-resort one, nor the reverse. */
export type SignedPrekeyKind = 'signed-prekey' | 'kem-one-time' | 'kem-last-resort';

/** The text that a device's signing key signs for a prekey. */
export function prekeyText(
  kind: SignedPrekeyKind,
  device: Ref,
  prekey: Pick<SignedPrekey, 'keyId' | 'publicKey'>,
): Uint8Array {
  return transcript('keytrail/v1/prekey', suite, kind, device.userId, device.deviceId, prekey.keyId, prekey.publicKey);
}

export function prekeyStatement(
  kind: SignedPrekeyKind,
  device: Ref & Pick<DeviceKeys, 'signingKey'>,
  prekey: Pick<SignedPrekey, 'keyId' | 'publicKey' | 'signature'>,
): Statement {
  return { publicKey: device.signingKey, text: prekeyText(kind, device, prekey), signature: prekey.signature };
}

/** A private prekey to keep, and what to upload of it. */
export interface NewPrekey<Upload> {
  readonly keyId: number;
  readonly keyPair: KeyPair;
  readonly upload: Upload;
}

/** A device with its private signing key. */
export interface PrekeySigner extends Ref {
  readonly signingKey: KeyPair;
}

export function createSignedPrekey(
  primitives: Primitives,
  device: PrekeySigner,
  keyId: number,
): NewPrekey<SignedPrekey> {
  const keyPair = primitives.x25519.keyPair();
  const { publicKey } = keyPair;
  const text = prekeyText('signed-prekey', device, { keyId, publicKey });
  const signature = primitives.ed25519.sign(device.signingKey.privateKey, text);
  return { keyId, keyPair, upload: create(SignedPrekeySchema, { keyId, publicKey, signature }) };
}

export function createOneTimePrekey(primitives: Primitives, keyId: number): NewPrekey<OneTimePrekey> {
  const keyPair = primitives.x25519.keyPair();
  return { keyId, keyPair, upload: create(OneTimePrekeySchema, { keyId, publicKey: keyPair.publicKey }) };
}

export function createKemPrekey(
  primitives: Primitives,
  device: PrekeySigner,
  keyId: number,
  kind: 'kem-one-time' | 'kem-last-resort',
): NewPrekey<KemPrekey> {
  const keyPair = primitives.mlKem768.keyPair();
  const { publicKey } = keyPair;
  const signature = primitives.ed25519.sign(
    device.signingKey.privateKey,
    prekeyText(kind, device, { keyId, publicKey }),
  );
  return { keyId, keyPair, upload: create(KemPrekeySchema, { keyId, publicKey, signature }) };
}

/** Kept in this file, so that nothing but the checks below makes a VerifiedRecipient. */
const verified: unique symbol = Symbol('verified');

/** A device that may be sealed to: its certificate and its prekeys have been verified. Made by `verifyBundle` and `verifyDevice`. */
export interface VerifiedRecipient extends DeviceKeys {
  readonly [verified]: true;
  readonly signedPrekey: Pick<SignedPrekey, 'keyId' | 'publicKey'>;
  readonly oneTimePrekey: Pick<OneTimePrekey, 'keyId' | 'publicKey'> | undefined;
  readonly kemPrekey: Pick<KemPrekey, 'keyId' | 'publicKey'>;
}

/**
 * Verifies a claimed bundle: certificate under the pinned root key, both prekey signatures, every key's encoding.
 * What comes out is frozen and may be sealed to as often as is right for its prekeys.
 *
 * @throws RecipientError.
 */
export function verifyBundle(primitives: Primitives, bundle: PrekeyBundle, rootKey: Uint8Array): VerifiedRecipient {
  const kind = bundle.kemPrekeyKind;
  if (kind === PrekeyKind.UNSPECIFIED) throw new RecipientError('malformed', 'kem_prekey_kind');
  return verifyRecipient(primitives, rootKey, bundle, {
    signedPrekey: bundle.signedPrekey,
    oneTimePrekey: bundle.oneTimePrekey,
    kemPrekey: bundle.kemPrekey,
    kemKind: kind === PrekeyKind.ONE_TIME ? 'kem-one-time' : 'kem-last-resort',
  });
}

/**
 * As `verifyBundle`, for a device as GetDevices returns it: to be sealed to again, without a claim, by its signed and last-resort prekeys.
 *
 * @throws RecipientError.
 */
export function verifyDevice(primitives: Primitives, device: Device, rootKey: Uint8Array): VerifiedRecipient {
  return verifyRecipient(primitives, rootKey, device, {
    signedPrekey: device.signedPrekey,
    oneTimePrekey: undefined,
    kemPrekey: device.lastResortPrekey,
    kemKind: 'kem-last-resort',
  });
}

interface Prekeys {
  signedPrekey: SignedPrekey | undefined;
  oneTimePrekey: OneTimePrekey | undefined;
  kemPrekey: KemPrekey | undefined;
  kemKind: SignedPrekeyKind;
}

function verifyRecipient(
  primitives: Primitives,
  rootKey: Uint8Array,
  device: DeviceKeys & { certificate?: DeviceCertificate | undefined },
  { signedPrekey, oneTimePrekey, kemPrekey, kemKind }: Prekeys,
): VerifiedRecipient {
  if (signedPrekey === undefined) throw new RecipientError('malformed', 'signed_prekey');
  if (kemPrekey === undefined) throw new RecipientError('malformed', 'kem_prekey');
  refuseKey('identity_key', checkX25519(device.identityKey));
  refuseKey('signing_key', checkEd25519(device.signingKey));
  refuseKey('signed_prekey', checkX25519(signedPrekey.publicKey));
  refuseKey('kem_prekey', checkKemKey(kemPrekey.publicKey));
  if (oneTimePrekey !== undefined) {
    refuseKey('one_time_prekey', checkX25519(oneTimePrekey.publicKey));
    if (oneTimePrekey.keyId === 0) throw new RecipientError('malformed', 'one_time_prekey.key_id');
  }
  try {
    verifyDeviceCertificate(primitives, device, device.certificate, rootKey);
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    throw new RecipientError(error.problem === 'root-key' ? 'root-key' : 'certificate', error.problem);
  }
  if (!verifyStatement(primitives, prekeyStatement('signed-prekey', device, signedPrekey))) {
    throw new RecipientError('signed-prekey');
  }
  if (!verifyStatement(primitives, prekeyStatement(kemKind, device, kemPrekey))) throw new RecipientError('kem-prekey');
  const { userId, deviceId, identityKey, signingKey } = device;
  const keys = { identityKey, signingKey, signedPrekey, oneTimePrekey, kemPrekey };
  return Object.freeze({ [verified]: true, userId, deviceId, ...keys } as const);
}

function refuseKey(field: string, problem: KeyProblem | undefined): void {
  if (problem !== undefined) throw new RecipientError('key', `${field} ${problem}`);
}
