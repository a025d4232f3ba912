import type { RegisterDeviceRequest, ReplenishPrekeysRequest } from '@keytrail/contracts';
import {
  deviceCertificateStatement,
  noblePrimitives,
  prekeyStatement,
  type Ref,
  type Statement,
  transcript,
} from '@keytrail/crypto';

/** The rules that a public key must pass: identity and signing keys also those that are too costly for prekeys. */
export type KeyRules = 'identity' | 'signing' | 'x25519' | 'kem';

/** A public key as it was uploaded, with the path of its field. */
export interface UploadedKey {
  readonly field: string;
  readonly keyId?: number;
  readonly publicKey: Uint8Array;
  readonly rules: KeyRules;
}

/** A signature as it was uploaded, with what it should have signed. */
export interface UploadedSignature {
  readonly field: string;
  readonly keyId?: number;
  readonly statement: Statement;
}

/** The keys that stood in the upload before, whatever their ids and kinds: one key under two ids would be handed out twice. */
export function repeatedKeys(keys: readonly UploadedKey[]): ReadonlySet<UploadedKey> {
  const seen = new Set<string>();
  return new Set(
    keys.filter(({ publicKey }) => seen.size === seen.add(Buffer.from(publicKey).toString('latin1')).size),
  );
}

type OneTimePrekeys = Pick<ReplenishPrekeysRequest, 'oneTimePrekeys' | 'oneTimeKemPrekeys'>;

/** The path of the first key id that stands twice in an upload. KEM prekeys share their ids with the last-resort prekey. */
export function repeatedKeyId(upload: OneTimePrekeys, lastResortKeyId?: number): string | undefined {
  return (
    repetition('one_time_prekeys', upload.oneTimePrekeys, new Set()) ??
    repetition('one_time_kem_prekeys', upload.oneTimeKemPrekeys, new Set(lastResortKeyId ? [lastResortKeyId] : []))
  );
}

function repetition(field: string, prekeys: readonly { keyId: number }[], seen: Set<number>): string | undefined {
  const index = prekeys.findIndex(({ keyId }) => seen.size === seen.add(keyId).size);
  return index < 0 ? undefined : `${field}[${index}].key_id`;
}

export function keysOfDevice(upload: RegisterDeviceRequest): UploadedKey[] {
  const { certificate, signedPrekey, lastResortPrekey } = wholeKeySet(upload);
  return [
    { field: 'identity_key', publicKey: upload.identityKey, rules: 'identity' },
    { field: 'signing_key', publicKey: upload.signingKey, rules: 'signing' },
    { field: 'certificate.root_key', publicKey: certificate.rootKey, rules: 'signing' },
    { field: 'signed_prekey.public_key', ...named(signedPrekey), rules: 'x25519' },
    { field: 'last_resort_prekey.public_key', ...named(lastResortPrekey), rules: 'kem' },
    ...keysOfPrekeys(upload),
  ];
}

export function keysOfPrekeys({ oneTimePrekeys, oneTimeKemPrekeys }: OneTimePrekeys): UploadedKey[] {
  return [
    ...oneTimePrekeys.map(
      (prekey, i): UploadedKey => ({
        field: `one_time_prekeys[${i}].public_key`,
        ...named(prekey),
        rules: 'x25519',
      }),
    ),
    ...oneTimeKemPrekeys.map(
      (prekey, i): UploadedKey => ({
        field: `one_time_kem_prekeys[${i}].public_key`,
        ...named(prekey),
        rules: 'kem',
      }),
    ),
  ];
}

/** Throws CertificateError when the certificate is not even well formed. */
export function signaturesOfDevice(device: Ref, upload: RegisterDeviceRequest): UploadedSignature[] {
  const { certificate, signedPrekey, lastResortPrekey } = wholeKeySet(upload);
  const { identityKey, signingKey } = upload;
  const signer = { ...device, signingKey };
  return [
    {
      field: 'certificate.signature',
      statement: deviceCertificateStatement({ ...device, identityKey, signingKey }, certificate),
    },
    {
      field: 'signed_prekey.signature',
      keyId: signedPrekey.keyId,
      statement: prekeyStatement('signed-prekey', signer, signedPrekey),
    },
    {
      field: 'last_resort_prekey.signature',
      keyId: lastResortPrekey.keyId,
      statement: prekeyStatement('kem-last-resort', signer, lastResortPrekey),
    },
    ...signaturesOfPrekeys(signer, upload),
  ];
}

export function signaturesOfPrekeys(
  signer: Ref & { readonly signingKey: Uint8Array },
  { oneTimeKemPrekeys }: OneTimePrekeys,
): UploadedSignature[] {
  return oneTimeKemPrekeys.map((prekey, i) => ({
    field: `one_time_kem_prekeys[${i}].signature`,
    keyId: prekey.keyId,
    statement: prekeyStatement('kem-one-time', signer, prekey),
  }));
}

/**
 * SHA-256 over the public keys of a registration and their ids: two registrations with one digest are of the same keys. Signatures and
 * the time of the certificate are left out, as a device may well sign anew when it tries again.
 */
export function digestKeys(upload: RegisterDeviceRequest): Uint8Array {
  const { certificate, signedPrekey, lastResortPrekey } = wholeKeySet(upload);
  const prekeys = [[signedPrekey], [lastResortPrekey], upload.oneTimePrekeys, upload.oneTimeKemPrekeys];
  const text = transcript(
    'keytrail/registered-keys',
    certificate.rootKey,
    upload.identityKey,
    upload.signingKey,
    ...prekeys.flatMap((kind) => [kind.length, ...kind.flatMap(({ keyId, publicKey }) => [keyId, publicKey])]),
  );
  return noblePrimitives.sha256(text);
}

/** The contract requires all three; its types cannot say so. */
export function wholeKeySet({ certificate, signedPrekey, lastResortPrekey }: RegisterDeviceRequest) {
  if (!certificate || !signedPrekey || !lastResortPrekey) throw new Error('the request was not validated');
  return { certificate, signedPrekey, lastResortPrekey };
}

function named({ keyId, publicKey }: { keyId: number; publicKey: Uint8Array }) {
  return { keyId, publicKey };
}
