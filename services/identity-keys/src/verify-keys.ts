import { checkKemKey, checkX25519, type KeyProblem } from '@keytrail/crypto';
import { checkIdentityKey, checkSigningKey, verifySignatures } from '@keytrail/crypto/node';
import { refuse } from '@keytrail/rpc';
import { type KeyRules, repeatedKeys, type UploadedKey, type UploadedSignature } from './domain/key-set.ts';

const check: Readonly<Record<KeyRules, (key: Uint8Array) => KeyProblem | undefined | Promise<KeyProblem | undefined>>> =
  {
    identity: checkIdentityKey,
    signing: checkSigningKey,
    x25519: checkX25519,
    kem: checkKemKey,
  };

/**
 * Throws KEY_INVALID naming the first key that breaks a rule, or stands in the upload a second time (`repeated`); BadRequest names all of
 * them. `keys` must be all public keys of the upload.
 */
export async function refuseInvalidKeys(keys: readonly UploadedKey[]): Promise<void> {
  const repeated = repeatedKeys(keys);
  const problems = await Promise.all(keys.map(({ rules, publicKey }) => check[rules](publicKey)));
  const broken = keys.flatMap((key, i) => {
    const rule = problems[i] ?? (repeated.has(key) ? 'repeated' : undefined);
    return rule ? [{ ...key, rule }] : [];
  });
  const [first] = broken;
  if (!first) return;
  throw refuse('KEY_INVALID', `${first.field}: ${first.rule}`, {
    metadata: { ...place(first), rule: first.rule },
    fields: broken.map(({ field, rule }) => ({ field, description: `the key is refused: ${rule}` })),
  });
}

/** Throws SIGNATURE_INVALID, or CERTIFICATE_INVALID when it is the certificate's, naming the first that does not verify; BadRequest names all. */
export async function refuseInvalidSignatures(signatures: readonly UploadedSignature[]): Promise<void> {
  const held = await verifySignatures(signatures.map(({ statement }) => statement));
  const broken = signatures.filter((_, i) => !held[i]);
  const [first] = broken;
  if (!first) return;
  const fields = broken.map(({ field }) => ({ field, description: 'the signature does not verify' }));
  const message = `${first.field}: the signature does not verify`;
  if (first.field.endsWith('certificate.signature'))
    throw refuse('CERTIFICATE_INVALID', message, { metadata: { field: first.field, rule: 'signature' }, fields });
  throw refuse('SIGNATURE_INVALID', message, { metadata: place(first), fields });
}

function place({ field, keyId }: { readonly field: string; readonly keyId?: number }): Record<string, string> {
  return keyId === undefined ? { field } : { field, key_id: String(keyId) };
}
