import { create, fromBinary, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import {
  type DeviceCertificate,
  type DeviceRef,
  HistoryPolicy,
  type SessionHeader,
  SessionHeaderSchema,
  type SignedHeader,
  SignedHeaderSchema,
  type WithheldReason,
  type Withholding,
  WithholdingSchema,
} from '@keytrail/contracts';
import { verifyDeviceCertificate } from './certificate.ts';
import { headerHash, type Ref, type SessionName } from './hashes.ts';
import { checkEd25519, checkX25519 } from './key-checks.ts';
import { type KeyPair, lengths, type Primitives, suite } from './primitives.ts';
import { CertificateError, HeaderError } from './problems.ts';
import { type Statement, verifyStatement } from './statement.ts';
import { transcript } from './transcript.ts';

/** The session that envelopes, withholdings and messages are bound to. */
export interface SessionRef {
  readonly conversationId: string;
  readonly sessionId: string;
  /** 32 bytes, SHA-256 of the header as serialized: binds epoch, roster, commitment and everything else in it. */
  readonly headerHash: Uint8Array;
}

/** A header whose form has been checked, with its names at hand. `initiator` is there. */
export interface Session extends SessionRef, SessionName {
  readonly header: SessionHeader;
  readonly initiator: DeviceRef;
}

/** The text that the initiator's signing key signs: the header's bytes as they are, in a domain of their own. */
export function headerText(header: Uint8Array): Uint8Array {
  return transcript('keytrail/v1/session-header', header);
}

/** The header's signature, to be verified under the signing key that the header itself names. */
export function headerStatement(signedHeader: SignedHeader, session: Session): Statement {
  return {
    publicKey: session.header.initiatorSigningKey,
    text: headerText(signedHeader.header),
    signature: signedHeader.signature,
  };
}

/**
 * Parses a header and checks its form: suite, lengths, key encodings, and a previous header for every epoch but the first.
 * Verifies no signature.
 *
 * @throws HeaderError (`malformed`, `suite`, `key`).
 */
export function parseHeader(bytes: Uint8Array): Session {
  const header = decodeHeader(bytes);
  const { conversationId, sessionId, epoch, initiator } = header;
  if (header.suite !== suite) throw new HeaderError('suite', String(header.suite));
  if (initiator === undefined) throw new HeaderError('malformed', 'initiator');
  refuseUnless(conversationId !== '' && sessionId !== '', 'ids');
  refuseUnless(epoch >= 1n, 'epoch');
  refuseUnless(header.rosterVersion >= 1n, 'roster_version');
  refuseUnless(header.rosterHash.length === lengths.hash, 'roster_hash');
  refuseUnless(header.keyCommitment.length === lengths.hash, 'key_commitment');
  refuseUnless(header.previousHeaderHash.length === (epoch === 1n ? 0 : lengths.hash), 'previous_header_hash');
  refuseUnless(
    header.historyPolicy === HistoryPolicy.OWN_MEMBERSHIP || header.historyPolicy === HistoryPolicy.SHARED,
    'history_policy',
  );
  refuseUnless(header.createdAt !== undefined, 'created_at');
  refuseUnless(
    new Set(header.deviceLists.map(({ userId }) => userId)).size === header.deviceLists.length,
    'device_lists',
  );
  for (const [field, problem] of [
    ['initiator_identity_key', checkX25519(header.initiatorIdentityKey)],
    ['initiator_signing_key', checkEd25519(header.initiatorSigningKey)],
    ['initiator_ephemeral_key', checkX25519(header.initiatorEphemeralKey)],
  ] as const) {
    if (problem !== undefined) throw new HeaderError('key', `${field} ${problem}`);
  }
  return { header, conversationId, sessionId, epoch, initiator, headerHash: headerHash(bytes) };
}

function decodeHeader(bytes: Uint8Array): SessionHeader {
  try {
    return fromBinary(SessionHeaderSchema, bytes);
  } catch {
    throw new HeaderError('malformed', 'header');
  }
}

function refuseUnless(held: boolean, field: string): void {
  if (!held) throw new HeaderError('malformed', field);
}

/** What the verifier knows already. Fields left out are not compared. */
export interface ExpectedSession {
  readonly conversationId?: string;
  readonly sessionId?: string;
  readonly epoch?: bigint;
}

/**
 * Verifies a header: its form, that it is of the session that was asked for, that `rootKey` (the initiator's user's pinned root key)
 * certifies the initiator's keys, and that the initiator signed these bytes.
 *
 * @throws HeaderError.
 */
export function verifyHeader(
  primitives: Primitives,
  signedHeader: SignedHeader,
  initiator: { certificate: DeviceCertificate | undefined; rootKey: Uint8Array },
  expected: ExpectedSession = {},
): Session {
  const session = parseHeader(signedHeader.header);
  for (const field of ['conversationId', 'sessionId', 'epoch'] as const) {
    const value = expected[field];
    if (value !== undefined && value !== session[field]) throw new HeaderError('mismatch', field);
  }
  const { header } = session;
  const device = {
    userId: session.initiator.userId,
    deviceId: session.initiator.deviceId,
    identityKey: header.initiatorIdentityKey,
    signingKey: header.initiatorSigningKey,
  };
  try {
    verifyDeviceCertificate(primitives, device, initiator.certificate, initiator.rootKey);
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    throw new HeaderError('certificate', error.problem);
  }
  if (!verifyStatement(primitives, headerStatement(signedHeader, session))) throw new HeaderError('signature');
  return session;
}

/**
 * Serializes and signs a header. The result's bytes are what counts from here on: never serialize it again.
 *
 * @throws HeaderError when its form is wrong.
 */
export function signHeader(
  primitives: Primitives,
  signingKey: KeyPair,
  header: MessageInitShape<typeof SessionHeaderSchema>,
): { signedHeader: SignedHeader; session: Session } {
  const bytes = toBinary(SessionHeaderSchema, create(SessionHeaderSchema, header));
  const session = parseHeader(bytes);
  const signature = primitives.ed25519.sign(signingKey.privateKey, headerText(bytes));
  return { signedHeader: create(SignedHeaderSchema, { header: bytes, signature }), session };
}

/** The text that the initiator signs when a device gets no envelope. */
export function withholdingText(session: SessionRef, device: Ref, reason: WithheldReason): Uint8Array {
  const { conversationId, sessionId, headerHash: hash } = session;
  const { userId, deviceId } = device;
  return transcript('keytrail/v1/withholding', suite, conversationId, sessionId, hash, userId, deviceId, reason);
}

/**
 * The statement of a withholding, under the initiator's signing key.
 *
 * @throws HeaderError (`malformed`) when it names no device.
 */
export function withholdingStatement(withholding: Withholding, session: SessionRef, signingKey: Uint8Array): Statement {
  const { device, reason, signature } = withholding;
  if (device === undefined) throw new HeaderError('malformed', 'withholding.device');
  return { publicKey: signingKey, text: withholdingText(session, device, reason), signature };
}

export function signWithholding(
  primitives: Primitives,
  signingKey: KeyPair,
  session: SessionRef,
  device: Ref,
  reason: WithheldReason,
): Withholding {
  const signature = primitives.ed25519.sign(signingKey.privateKey, withholdingText(session, device, reason));
  const { userId, deviceId } = device;
  return create(WithholdingSchema, { device: { userId, deviceId }, reason, signature });
}
