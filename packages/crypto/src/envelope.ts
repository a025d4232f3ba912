import { create } from '@bufbuild/protobuf';
import { type DeviceCertificate, type DeviceRef, type Envelope, EnvelopeSchema } from '@keytrail/contracts';
import { concatBytes, equalBytes } from './bytes.ts';
import { certifiedAtMs, type DeviceKeys, verifyDeviceCertificate } from './certificate.ts';
import { keyCommitment, type Ref, sameDevice } from './hashes.ts';
import type { Session, SessionRef } from './header.ts';
import type { VerifiedRecipient } from './prekeys.ts';
import { expectLength, type KeyPair, lengths, type Primitives, suite } from './primitives.ts';
import { CertificateError, EnvelopeError } from './problems.ts';
import { type Statement, verifyStatement } from './statement.ts';
import { transcript } from './transcript.ts';

/** An envelope whose required fields are there, with the lengths they must have. */
type WholeEnvelope = Envelope & { recipient: DeviceRef; sealer: DeviceRef; sealerCertificate: DeviceCertificate };

function expectWhole(envelope: Envelope): asserts envelope is WholeEnvelope {
  const rules: [field: string, held: boolean][] = [
    ['recipient', envelope.recipient !== undefined],
    ['sealer', envelope.sealer !== undefined],
    ['sealer_certificate', envelope.sealerCertificate !== undefined],
    ['sealer_identity_key', envelope.sealerIdentityKey.length === lengths.x25519Key],
    ['sealer_signing_key', envelope.sealerSigningKey.length === lengths.ed25519Key],
    ['sealer_ephemeral_key', envelope.sealerEphemeralKey.length === lengths.x25519Key],
    ['signed_prekey_id', envelope.signedPrekeyId !== 0],
    ['kem_prekey_id', envelope.kemPrekeyId !== 0],
    ['kem_ciphertext', envelope.kemCiphertext.length === lengths.kemCiphertext],
    ['ciphertext', envelope.ciphertext.length === lengths.sealedSessionKey],
    ['signature', envelope.signature.length === lengths.ed25519Signature],
  ];
  const broken = rules.find(([, held]) => !held);
  if (broken !== undefined) throw new EnvelopeError('malformed', broken[0]);
}

/**
 * The text that the sealer signs: every field of the envelope but the signature, and the session that it is for.
 *
 * @throws EnvelopeError (`malformed`) when a field is missing.
 */
export function envelopeText(envelope: Envelope, session: SessionRef): Uint8Array {
  const { recipient, sealer, sealerCertificate: certificate } = envelope;
  const at = certificate === undefined ? undefined : certifiedAtMs(certificate);
  if (recipient === undefined || sealer === undefined || certificate === undefined || at === undefined) {
    throw new EnvelopeError('malformed', 'recipient, sealer or sealer_certificate');
  }
  return transcript(
    'keytrail/v1/envelope',
    suite,
    session.conversationId,
    session.sessionId,
    session.headerHash,
    envelope.attempt,
    recipient.userId,
    recipient.deviceId,
    sealer.userId,
    sealer.deviceId,
    envelope.sealerIdentityKey,
    envelope.sealerSigningKey,
    certificate.rootKey,
    certificate.suite,
    at,
    certificate.signature,
    envelope.sealerEphemeralKey,
    envelope.signedPrekeyId,
    envelope.oneTimePrekeyId,
    envelope.kemPrekeyId,
    envelope.kemCiphertext,
    envelope.ciphertext,
  );
}

/**
 * The envelope's signature, to be verified under the signing key that it names itself.
 *
 * @throws EnvelopeError (`malformed`).
 */
export function envelopeStatement(envelope: Envelope, session: SessionRef): Statement {
  expectWhole(envelope);
  const text = envelopeText(envelope, session);
  return { publicKey: envelope.sealerSigningKey, text, signature: envelope.signature };
}

/**
 * Checks an envelope against the header: one of attempt 0 must be by the header's initiator, with the header's keys.
 *
 * @throws EnvelopeError (`sealer`).
 */
export function checkSealer(envelope: Envelope, session: Session): void {
  if (envelope.attempt !== 0) return;
  const { header, initiator } = session;
  const held =
    sameDevice(envelope.sealer, initiator) &&
    equalBytes(envelope.sealerIdentityKey, header.initiatorIdentityKey) &&
    equalBytes(envelope.sealerSigningKey, header.initiatorSigningKey) &&
    equalBytes(envelope.sealerEphemeralKey, header.initiatorEphemeralKey);
  if (!held) throw new EnvelopeError('sealer');
}

/**
 * Verifies what can be verified of an envelope without its recipient's private keys: form, signature, and, when `rootKey` is given,
 * the sealer's certificate under it.
 *
 * @throws EnvelopeError (`malformed`, `certificate`, `signature`).
 */
export function verifyEnvelope(
  primitives: Primitives,
  { envelope, rootKey, ...session }: { envelope: Envelope; rootKey?: Uint8Array } & SessionRef,
): void {
  const statement = envelopeStatement(envelope, session);
  if (rootKey !== undefined) verifySealerCertificate(primitives, envelope, rootKey);
  if (!verifyStatement(primitives, statement)) throw new EnvelopeError('signature');
}

function verifySealerCertificate(primitives: Primitives, envelope: Envelope, rootKey: Uint8Array): void {
  const { sealer, sealerIdentityKey: identityKey, sealerSigningKey: signingKey } = envelope;
  if (sealer === undefined) throw new EnvelopeError('malformed', 'sealer');
  const device = { userId: sealer.userId, deviceId: sealer.deviceId, identityKey, signingKey };
  try {
    verifyDeviceCertificate(primitives, device, envelope.sealerCertificate, rootKey);
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    throw new EnvelopeError('certificate', error.problem);
  }
}

/** The device that seals, with its private keys. */
export interface Sealer extends Ref {
  readonly identityKey: KeyPair;
  readonly signingKey: KeyPair;
  readonly certificate: DeviceCertificate;
}

/** Everything that both sides must agree on. */
interface Agreement {
  readonly session: SessionRef;
  readonly attempt: number;
  readonly sealer: DeviceKeys;
  readonly recipient: DeviceKeys;
  readonly ephemeralKey: Uint8Array;
  readonly signedPrekey: PublicPrekey;
  readonly oneTimePrekey: PublicPrekey | undefined;
  readonly kemPrekey: PublicPrekey;
  readonly kemCiphertext: Uint8Array;
}

interface PublicPrekey {
  readonly keyId: number;
  readonly publicKey: Uint8Array;
}

/** The associated data of the ciphertext; its hash is in the key. No one-time prekey: id 0 and no bytes. */
export function sealingText(agreement: Agreement): Uint8Array {
  const { session, sealer, recipient, signedPrekey, oneTimePrekey, kemPrekey } = agreement;
  return transcript(
    'keytrail/v1/sealing',
    suite,
    session.conversationId,
    session.sessionId,
    session.headerHash,
    agreement.attempt,
    sealer.userId,
    sealer.deviceId,
    sealer.identityKey,
    sealer.signingKey,
    recipient.userId,
    recipient.deviceId,
    recipient.identityKey,
    recipient.signingKey,
    agreement.ephemeralKey,
    signedPrekey.keyId,
    signedPrekey.publicKey,
    oneTimePrekey?.keyId ?? 0,
    oneTimePrekey?.publicKey ?? new Uint8Array(),
    kemPrekey.keyId,
    kemPrekey.publicKey,
    agreement.kemCiphertext,
  );
}

const noSalt = new Uint8Array(32);
/** X3DH §2.2: keeps this input apart from anything that a signature over the same curve could hash. */
const curvePrefix = new Uint8Array(32).fill(0xff);

/** Key and nonce of one envelope, from the Diffie-Hellman results in their order, the KEM secret, and `sealingText` (PQXDH §3.3). */
export function sealingKey(
  primitives: Primitives,
  secrets: Uint8Array[],
  text: Uint8Array,
): { key: Uint8Array; nonce: Uint8Array } {
  const info = transcript('keytrail/v1/sealing-key', primitives.sha256(text));
  const derived = primitives.hkdfSha256(concatBytes(curvePrefix, ...secrets), noSalt, info, 44);
  return { key: derived.slice(0, 32), nonce: derived.slice(32) };
}

function agreed(secret: Uint8Array | undefined): Uint8Array {
  if (secret === undefined) throw new EnvelopeError('low-order');
  return secret;
}

export interface SealEnvelope {
  readonly primitives: Primitives;
  readonly sealer: Sealer;
  readonly recipient: VerifiedRecipient;
  readonly session: SessionRef;
  /** 0 for the envelope stored with the session, else the attempt of the key request that it fulfils. */
  readonly attempt: number;
  /** With attempt 0 the key pair behind the header's initiator_ephemeral_key; else left out, and a fresh one is made. */
  readonly ephemeralKey?: KeyPair;
  /** 32 bytes. */
  readonly sessionKey: Uint8Array;
}

/**
 * Seals a session key to one device, after PQXDH rev. 3 §3.3, and signs the envelope. The recipient was verified when it became
 * a VerifiedRecipient.
 *
 * @throws EnvelopeError (`low-order`); RangeError for a session key of another length.
 */
export function sealEnvelope(input: SealEnvelope): Envelope {
  const { primitives, sealer, recipient, session, attempt, sessionKey } = input;
  expectLength(sessionKey, lengths.sessionKey, 'session key');
  if (attempt === 0 && input.ephemeralKey === undefined)
    throw new RangeError('attempt 0 needs the ephemeral key of its header');
  const { x25519 } = primitives;
  const ephemeral = input.ephemeralKey ?? x25519.keyPair();
  const { signedPrekey, oneTimePrekey, kemPrekey } = recipient;
  const encapsulation = primitives.mlKem768.encapsulate(kemPrekey.publicKey);
  if (encapsulation === undefined) throw new EnvelopeError('malformed', 'kem_prekey');
  const secrets = [
    agreed(x25519.sharedSecret(sealer.identityKey.privateKey, signedPrekey.publicKey)),
    agreed(x25519.sharedSecret(ephemeral.privateKey, recipient.identityKey)),
    agreed(x25519.sharedSecret(ephemeral.privateKey, signedPrekey.publicKey)),
  ];
  if (oneTimePrekey !== undefined) {
    secrets.push(agreed(x25519.sharedSecret(ephemeral.privateKey, oneTimePrekey.publicKey)));
  }
  secrets.push(encapsulation.sharedSecret);
  const text = sealingText({
    session,
    attempt,
    sealer: publicKeys(sealer),
    recipient,
    ephemeralKey: ephemeral.publicKey,
    signedPrekey,
    oneTimePrekey,
    kemPrekey,
    kemCiphertext: encapsulation.ciphertext,
  });
  const { key, nonce } = sealingKey(primitives, secrets, text);
  const envelope = create(EnvelopeSchema, {
    recipient: { userId: recipient.userId, deviceId: recipient.deviceId },
    sealer: { userId: sealer.userId, deviceId: sealer.deviceId },
    attempt,
    sealerIdentityKey: sealer.identityKey.publicKey,
    sealerSigningKey: sealer.signingKey.publicKey,
    sealerCertificate: sealer.certificate,
    sealerEphemeralKey: ephemeral.publicKey,
    signedPrekeyId: signedPrekey.keyId,
    oneTimePrekeyId: oneTimePrekey?.keyId ?? 0,
    kemPrekeyId: kemPrekey.keyId,
    kemCiphertext: encapsulation.ciphertext,
    ciphertext: primitives.aead.seal(key, nonce, sessionKey, text),
  });
  envelope.signature = primitives.ed25519.sign(sealer.signingKey.privateKey, envelopeText(envelope, session));
  return envelope;
}

function publicKeys(device: Sealer): DeviceKeys {
  return {
    userId: device.userId,
    deviceId: device.deviceId,
    identityKey: device.identityKey.publicKey,
    signingKey: device.signingKey.publicKey,
  };
}

/** The private keys of the device that opens; the prekeys are those that the envelope names by id, undefined when they are gone. */
export interface Opener extends Ref {
  readonly identityKey: KeyPair;
  /** 32 bytes, Ed25519. */
  readonly signingKey: Uint8Array;
  readonly signedPrekey: KeyPair | undefined;
  readonly oneTimePrekey?: KeyPair | undefined;
  readonly kemPrekey: KeyPair | undefined;
}

export interface OpenEnvelope {
  readonly primitives: Primitives;
  readonly envelope: Envelope;
  /** From `verifyHeader`. */
  readonly session: Session;
  readonly recipient: Opener;
  /** 32 bytes, Ed25519: the root key pinned for the sealer's user. */
  readonly rootKey: Uint8Array;
}

/**
 * Opens an envelope and returns the session key (32 bytes): the one that the header commits to, sealed for this device and session by
 * a certified device.
 *
 * @throws EnvelopeError.
 */
export function openEnvelope({ primitives, envelope, session, recipient, rootKey }: OpenEnvelope): Uint8Array {
  expectWhole(envelope);
  if (!sameDevice(envelope.recipient, recipient)) throw new EnvelopeError('recipient');
  checkSealer(envelope, session);
  const { conversationId, sessionId, headerHash } = session;
  verifyEnvelope(primitives, { envelope, conversationId, sessionId, headerHash, rootKey });
  const { signedPrekey, kemPrekey } = recipient;
  if (signedPrekey === undefined) throw new EnvelopeError('prekey-unknown', `signed prekey ${envelope.signedPrekeyId}`);
  if (kemPrekey === undefined) throw new EnvelopeError('prekey-unknown', `KEM prekey ${envelope.kemPrekeyId}`);
  const oneTimePrekey = envelope.oneTimePrekeyId === 0 ? undefined : recipient.oneTimePrekey;
  if (envelope.oneTimePrekeyId !== 0 && oneTimePrekey === undefined) {
    throw new EnvelopeError('prekey-unknown', `one-time prekey ${envelope.oneTimePrekeyId}`);
  }
  const { x25519 } = primitives;
  const secrets = [
    agreed(x25519.sharedSecret(signedPrekey.privateKey, envelope.sealerIdentityKey)),
    agreed(x25519.sharedSecret(recipient.identityKey.privateKey, envelope.sealerEphemeralKey)),
    agreed(x25519.sharedSecret(signedPrekey.privateKey, envelope.sealerEphemeralKey)),
  ];
  if (oneTimePrekey !== undefined) {
    secrets.push(agreed(x25519.sharedSecret(oneTimePrekey.privateKey, envelope.sealerEphemeralKey)));
  }
  secrets.push(primitives.mlKem768.decapsulate(kemPrekey.privateKey, envelope.kemCiphertext));
  const { sealer } = envelope;
  const text = sealingText({
    session,
    attempt: envelope.attempt,
    sealer: {
      userId: sealer.userId,
      deviceId: sealer.deviceId,
      identityKey: envelope.sealerIdentityKey,
      signingKey: envelope.sealerSigningKey,
    },
    recipient: {
      userId: recipient.userId,
      deviceId: recipient.deviceId,
      identityKey: recipient.identityKey.publicKey,
      signingKey: recipient.signingKey,
    },
    ephemeralKey: envelope.sealerEphemeralKey,
    signedPrekey: { keyId: envelope.signedPrekeyId, publicKey: signedPrekey.publicKey },
    oneTimePrekey: oneTimePrekey && { keyId: envelope.oneTimePrekeyId, publicKey: oneTimePrekey.publicKey },
    kemPrekey: { keyId: envelope.kemPrekeyId, publicKey: kemPrekey.publicKey },
    kemCiphertext: envelope.kemCiphertext,
  });
  const { key, nonce } = sealingKey(primitives, secrets, text);
  const sessionKey = primitives.aead.open(key, nonce, envelope.ciphertext, text);
  if (sessionKey === undefined) throw new EnvelopeError('decrypt');
  if (!equalBytes(keyCommitment(sessionKey, session), session.header.keyCommitment)) {
    throw new EnvelopeError('commitment');
  }
  return sessionKey;
}
