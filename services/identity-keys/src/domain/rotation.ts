import type { RotateSignedPrekeyRequest } from '@keytrail/contracts';
import { prekeyStatement, type Ref } from '@keytrail/crypto';
import type { UploadedKey, UploadedSignature } from './key-set.ts';

type Rotation = Pick<RotateSignedPrekeyRequest, 'signedPrekey' | 'lastResortPrekey'>;

export function keysOfRotation({ signedPrekey, lastResortPrekey }: Rotation): UploadedKey[] {
  const keys: UploadedKey[] = [];
  if (signedPrekey) {
    const { keyId, publicKey } = signedPrekey;
    keys.push({ field: 'signed_prekey.public_key', keyId, publicKey, rules: 'x25519' });
  }
  if (lastResortPrekey) {
    const { keyId, publicKey } = lastResortPrekey;
    keys.push({ field: 'last_resort_prekey.public_key', keyId, publicKey, rules: 'kem' });
  }
  return keys;
}

/** `signer` has the signing key that is stored: a rotation cannot bring another one. */
export function signaturesOfRotation(
  signer: Ref & { readonly signingKey: Uint8Array },
  { signedPrekey, lastResortPrekey }: Rotation,
): UploadedSignature[] {
  const signatures: UploadedSignature[] = [];
  if (signedPrekey)
    signatures.push({
      field: 'signed_prekey.signature',
      keyId: signedPrekey.keyId,
      statement: prekeyStatement('signed-prekey', signer, signedPrekey),
    });
  if (lastResortPrekey)
    signatures.push({
      field: 'last_resort_prekey.signature',
      keyId: lastResortPrekey.keyId,
      statement: prekeyStatement('kem-last-resort', signer, lastResortPrekey),
    });
  return signatures;
}
