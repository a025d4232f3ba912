import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { type DeviceCertificate, DeviceCertificateSchema, type KemPrekey } from '@keytrail/contracts';
import { concatBytes, equalBytes } from './bytes.ts';
import { certifiedAtMs, type DeviceKeys, verifyDeviceCertificate } from './certificate.ts';
import type { Sealer } from './envelope.ts';
import { type Ref, sameDevice } from './hashes.ts';
import { checkKemKey, checkX25519 } from './key-checks.ts';
import { prekeyStatement } from './prekeys.ts';
import { expectLength, type KeyPair, lengths, type Primitives, suite } from './primitives.ts';
import { CertificateError, RecipientError, SealedRootKeyError } from './problems.ts';
import { verifyStatement } from './statement.ts';
import { decodeParts, type Part, transcript } from './transcript.ts';

/** What a new device shows to the device that is to approve it: its public keys, and a secret that only the approver may see. */
export interface LinkRequest extends DeviceKeys {
  /** The new device's last-resort KEM prekey, as it will register it. */
  readonly kemPrekey: Pick<KemPrekey, 'keyId' | 'publicKey' | 'signature'>;
  /** 32 random bytes, told over the channel that authenticates both (a QR code): who knows it has seen the request. */
  readonly linkSecret: Uint8Array;
}

/** Everything that both sides of a link must agree on. */
interface LinkAgreement {
  readonly approver: DeviceKeys;
  readonly recipient: DeviceKeys;
  readonly rootKey: Uint8Array;
  readonly ephemeralKey: Uint8Array;
  readonly kemPrekey: Pick<KemPrekey, 'keyId' | 'publicKey'>;
  readonly kemCiphertext: Uint8Array;
}

/** The associated data of a sealed root key; its hash is in the key. */
export function rootKeySealingText(agreement: LinkAgreement): Uint8Array {
  const { approver, recipient, kemPrekey } = agreement;
  return transcript(
    'keytrail/v1/root-key-sealing',
    suite,
    approver.userId,
    approver.deviceId,
    approver.identityKey,
    approver.signingKey,
    recipient.deviceId,
    recipient.identityKey,
    recipient.signingKey,
    agreement.rootKey,
    agreement.ephemeralKey,
    kemPrekey.keyId,
    kemPrekey.publicKey,
    agreement.kemCiphertext,
  );
}

const curvePrefix = new Uint8Array(32).fill(0xff);

function linkKey(primitives: Primitives, secrets: Uint8Array[], linkSecret: Uint8Array, text: Uint8Array) {
  const info = transcript('keytrail/v1/root-key-sealing-key', primitives.sha256(text));
  const derived = primitives.hkdfSha256(concatBytes(curvePrefix, ...secrets), linkSecret, info, 44);
  return { key: derived.slice(0, 32), nonce: derived.slice(32) };
}

function agreed(secret: Uint8Array | undefined): Uint8Array {
  if (secret === undefined) throw new SealedRootKeyError('low-order');
  return secret;
}

const sealedDomain = 'keytrail/v1/sealed-root-key';

/** A sealed root key without its signature. */
export interface SealedRootKeyParts {
  readonly approver: DeviceKeys;
  readonly recipient: Ref;
  readonly certificate: DeviceCertificate;
  readonly ephemeralKey: Uint8Array;
  readonly kemPrekeyId: number;
  readonly kemCiphertext: Uint8Array;
  readonly ciphertext: Uint8Array;
}

/** What the approver signs; the sealed root key is this text with the signature as its last part. */
export function sealedRootKeyText(sealed: SealedRootKeyParts): Uint8Array {
  return transcript(sealedDomain, ...sealedParts(sealed));
}

function sealedParts(sealed: SealedRootKeyParts): Part[] {
  const { approver, certificate } = sealed;
  return [
    suite,
    approver.userId,
    sealed.recipient.deviceId,
    approver.deviceId,
    approver.identityKey,
    approver.signingKey,
    certificate.rootKey,
    certifiedAtMs(certificate) ?? 0n,
    certificate.signature,
    sealed.ephemeralKey,
    sealed.kemPrekeyId,
    sealed.kemCiphertext,
    sealed.ciphertext,
  ];
}

/**
 * Seals the user's root key to a new device that the user approves on this one. The caller certifies the new device besides
 * (`certifyDevice`).
 *
 * @returns the bytes to bring to the new device, by any channel.
 * @throws RecipientError (`malformed`, `key`, `kem-prekey`): the request is wrong; SealedRootKeyError (`recipient`): it is another user's.
 */
export function sealRootKeyToDevice(
  primitives: Primitives,
  { rootKey, approver, request }: { rootKey: KeyPair; approver: Sealer; request: LinkRequest },
): Uint8Array {
  const { x25519, mlKem768, aead, ed25519 } = primitives;
  expectLength(request.linkSecret, 32, 'link secret');
  if (request.userId !== approver.userId || request.deviceId === approver.deviceId) {
    throw new SealedRootKeyError('recipient');
  }
  const problem = checkX25519(request.identityKey) ?? checkKemKey(request.kemPrekey.publicKey);
  if (problem !== undefined) throw new RecipientError('key', problem);
  if (!verifyStatement(primitives, prekeyStatement('kem-last-resort', request, request.kemPrekey))) {
    throw new RecipientError('kem-prekey');
  }
  const ephemeral = x25519.keyPair();
  const encapsulation = mlKem768.encapsulate(request.kemPrekey.publicKey);
  if (encapsulation === undefined) throw new RecipientError('key', 'modulus');
  const secrets = [
    agreed(x25519.sharedSecret(approver.identityKey.privateKey, request.identityKey)),
    agreed(x25519.sharedSecret(ephemeral.privateKey, request.identityKey)),
    encapsulation.sharedSecret,
  ];
  const { userId, deviceId } = approver;
  const approverKeys: DeviceKeys = {
    userId,
    deviceId,
    identityKey: approver.identityKey.publicKey,
    signingKey: approver.signingKey.publicKey,
  };
  const text = rootKeySealingText({
    approver: approverKeys,
    recipient: request,
    rootKey: rootKey.publicKey,
    ephemeralKey: ephemeral.publicKey,
    kemPrekey: request.kemPrekey,
    kemCiphertext: encapsulation.ciphertext,
  });
  const { key, nonce } = linkKey(primitives, secrets, request.linkSecret, text);
  const parts: SealedRootKeyParts = {
    approver: approverKeys,
    recipient: request,
    certificate: approver.certificate,
    ephemeralKey: ephemeral.publicKey,
    kemPrekeyId: request.kemPrekey.keyId,
    kemCiphertext: encapsulation.ciphertext,
    ciphertext: aead.seal(key, nonce, rootKey.privateKey, text),
  };
  const signature = ed25519.sign(approver.signingKey.privateKey, sealedRootKeyText(parts));
  return transcript(sealedDomain, ...sealedParts(parts), signature);
}

/** The new device, with the private keys behind its link request. */
export interface LinkingDevice extends Ref {
  readonly identityKey: KeyPair;
  /** 32 bytes, Ed25519. */
  readonly signingKey: Uint8Array;
  readonly kemPrekey: { readonly keyId: number; readonly keyPair: KeyPair };
  readonly linkSecret: Uint8Array;
}

/**
 * Opens a sealed root key on the new device: sealed by one who has seen the link request, on a device that this very root key certifies.
 *
 * @throws SealedRootKeyError.
 */
export function openSealedRootKey(
  primitives: Primitives,
  { sealed, device }: { sealed: Uint8Array; device: LinkingDevice },
): { rootKey: KeyPair; approver: DeviceKeys } {
  const { x25519, mlKem768, aead, ed25519 } = primitives;
  expectLength(device.linkSecret, 32, 'link secret');
  const { parts, signature } = readSealed(sealed);
  const { approver, certificate, ephemeralKey, kemCiphertext } = parts;
  if (!sameDevice(parts.recipient, device) || parts.kemPrekeyId !== device.kemPrekey.keyId) {
    throw new SealedRootKeyError('recipient');
  }
  try {
    verifyDeviceCertificate(primitives, approver, certificate, certificate.rootKey);
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    throw new SealedRootKeyError('certificate', error.problem);
  }
  const signed = sealedRootKeyText(parts);
  if (!ed25519.verify(approver.signingKey, signed, signature)) throw new SealedRootKeyError('signature');
  const identityKey = device.identityKey.privateKey;
  const secrets = [
    agreed(x25519.sharedSecret(identityKey, approver.identityKey)),
    agreed(x25519.sharedSecret(identityKey, ephemeralKey)),
    mlKem768.decapsulate(device.kemPrekey.keyPair.privateKey, kemCiphertext),
  ];
  const text = rootKeySealingText({
    approver,
    recipient: {
      userId: device.userId,
      deviceId: device.deviceId,
      identityKey: device.identityKey.publicKey,
      signingKey: device.signingKey,
    },
    rootKey: certificate.rootKey,
    ephemeralKey,
    kemPrekey: { keyId: device.kemPrekey.keyId, publicKey: device.kemPrekey.keyPair.publicKey },
    kemCiphertext,
  });
  const { key, nonce } = linkKey(primitives, secrets, device.linkSecret, text);
  const privateKey = aead.open(key, nonce, parts.ciphertext, text);
  if (privateKey === undefined) throw new SealedRootKeyError('decrypt');
  if (!equalBytes(ed25519.publicKey(privateKey), certificate.rootKey)) throw new SealedRootKeyError('certificate');
  return { rootKey: { publicKey: certificate.rootKey, privateKey }, approver };
}

const fieldLengths = [8, -1, -1, -1, 32, 32, 32, 8, 64, 32, 8, lengths.kemCiphertext, 48, 64];

function readSealed(sealed: Uint8Array): { parts: SealedRootKeyParts; signature: Uint8Array } {
  const fields = decodeParts(sealed)?.slice(1);
  const fits = fields?.length === fieldLengths.length && fields.every((field, i) => hasLength(field, fieldLengths[i]));
  if (fields === undefined || !fits) throw new SealedRootKeyError('malformed');
  const [
    ,
    user,
    recipient,
    approver,
    identityKey,
    signingKey,
    rootKey,
    at,
    certified,
    ephemeralKey,
    kemId,
    kem,
    cipher,
    signature,
  ] = fields as Fields;
  const userId = text(user);
  const parts: SealedRootKeyParts = {
    approver: { userId, deviceId: text(approver), identityKey, signingKey },
    recipient: { userId, deviceId: text(recipient) },
    certificate: create(DeviceCertificateSchema, {
      rootKey,
      suite,
      certifiedAt: timestampFromMs(Number(integer(at))),
      signature: certified,
    }),
    ephemeralKey,
    kemPrekeyId: Number(integer(kemId)),
    kemCiphertext: kem,
    ciphertext: cipher,
  };
  // One encoding only: what was read must be what would have been written, suite and domain included.
  const again = transcript(sealedDomain, ...sealedParts(parts), signature);
  if (!equalBytes(again, sealed)) throw new SealedRootKeyError('malformed');
  return { parts, signature };
}

type Bytes = Uint8Array;
type Fields = [Bytes, Bytes, Bytes, Bytes, Bytes, Bytes, Bytes, Bytes, Bytes, Bytes, Bytes, Bytes, Bytes, Bytes];

function hasLength(field: Uint8Array, length: number | undefined): boolean {
  return length === -1 || field.length === length;
}

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

function integer(bytes: Uint8Array): bigint {
  const value = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getBigUint64(0);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new SealedRootKeyError('malformed');
  return value;
}
