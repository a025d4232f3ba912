import type { Message, SendMessageRequest } from '@keytrail/contracts';
import { concatBytes } from './bytes.ts';
import type { Ref, SessionName } from './hashes.ts';
import type { SessionRef } from './header.ts';
import { type KeyPair, lengths, type Primitives, suite } from './primitives.ts';
import { MessageError } from './problems.ts';
import { type Statement, verifyStatement } from './statement.ts';
import { transcript, uint64 } from './transcript.ts';

/** A session by name and header hash: what `parseHeader`, `signHeader` and `verifyHeader` return, or a stored row. */
export type MessageSession = SessionRef & SessionName;

/** What the sender signs: session, sender, counter and ciphertext. */
export function messageText(
  session: MessageSession,
  sender: Ref,
  senderCounter: bigint,
  ciphertext: Uint8Array,
): Uint8Array {
  return transcript('keytrail/v1/message', ...bindings(session, sender, senderCounter), ciphertext);
}

/** The associated data of a message's ciphertext. */
export function messageAssociatedData(session: MessageSession, sender: Ref, senderCounter: bigint): Uint8Array {
  return transcript('keytrail/v1/message-data', ...bindings(session, sender, senderCounter));
}

function bindings(session: MessageSession, sender: Ref, senderCounter: bigint) {
  const { conversationId, sessionId, epoch, headerHash } = session;
  const { userId, deviceId } = sender;
  return [suite, conversationId, sessionId, epoch, headerHash, userId, deviceId, senderCounter] as const;
}

/** What HKDF is told when it makes a sender's key. */
export function senderKeyInfo(session: SessionRef, sender: Ref): Uint8Array {
  const { conversationId, sessionId, headerHash } = session;
  const { userId, deviceId } = sender;
  return transcript('keytrail/v1/sender-key', suite, conversationId, sessionId, headerHash, userId, deviceId);
}

const noSalt = new Uint8Array(32);

/** The key of one sending device in one session: 32 bytes. No two devices share one, so no two counters meet. */
export function senderKey(
  primitives: Primitives,
  sessionKey: Uint8Array,
  session: SessionRef,
  sender: Ref,
): Uint8Array {
  return primitives.hkdfSha256(sessionKey, noSalt, senderKeyInfo(session, sender), 32);
}

/** 12 bytes: four zero bytes and the counter, big-endian. */
export function messageNonce(senderCounter: bigint): Uint8Array {
  return concatBytes(new Uint8Array(4), uint64(senderCounter));
}

export interface EncryptMessage {
  readonly primitives: Primitives;
  /** 32 bytes. */
  readonly sessionKey: Uint8Array;
  readonly session: MessageSession;
  readonly sender: Ref & { readonly signingKey: KeyPair };
  /** From 0. Using one twice under one session key tells the texts of both: store the next one before sending. */
  readonly senderCounter: bigint;
  readonly plaintext: Uint8Array;
}

/** Encrypts and signs a message: the fields of a SendMessageRequest that are the sender's. */
export function encryptMessage(
  input: EncryptMessage,
): Pick<SendMessageRequest, 'conversationId' | 'sessionId' | 'senderCounter' | 'ciphertext' | 'signature'> {
  const { primitives, sessionKey, session, sender, senderCounter, plaintext } = input;
  const key = senderKey(primitives, sessionKey, session, sender);
  const associatedData = messageAssociatedData(session, sender, senderCounter);
  const ciphertext = primitives.aead.seal(key, messageNonce(senderCounter), plaintext, associatedData);
  const text = messageText(session, sender, senderCounter, ciphertext);
  const signature = primitives.ed25519.sign(sender.signingKey.privateKey, text);
  return {
    conversationId: session.conversationId,
    sessionId: session.sessionId,
    senderCounter,
    ciphertext,
    signature,
  };
}

/** What is verified and decrypted of a message; the server's sequence and time are not the sender's word. */
export type SentMessage = Pick<
  Message,
  'conversationId' | 'sessionId' | 'epoch' | 'sender' | 'senderCounter' | 'ciphertext' | 'signature'
>;

/**
 * The message's signature, under the sender's signing key (32 bytes, from a certified device).
 *
 * @throws MessageError (`malformed`, `mismatch`).
 */
export function messageStatement(message: SentMessage, session: MessageSession, signingKey: Uint8Array): Statement {
  const { sender, senderCounter, ciphertext, signature } = message;
  if (sender === undefined) throw new MessageError('malformed', 'sender');
  if (ciphertext.length < lengths.aeadTag) throw new MessageError('malformed', 'ciphertext');
  for (const field of ['conversationId', 'sessionId', 'epoch'] as const) {
    if (message[field] !== session[field]) throw new MessageError('mismatch', field);
  }
  return { publicKey: signingKey, text: messageText(session, sender, senderCounter, ciphertext), signature };
}

export interface DecryptMessage {
  readonly primitives: Primitives;
  /** 32 bytes. */
  readonly sessionKey: Uint8Array;
  readonly session: MessageSession;
  readonly message: SentMessage;
  /** 32 bytes, Ed25519: the sender's, from a certificate that was verified. */
  readonly signingKey: Uint8Array;
}

/**
 * Verifies and decrypts a message.
 *
 * @throws MessageError.
 */
export function decryptMessage({ primitives, sessionKey, session, message, signingKey }: DecryptMessage): Uint8Array {
  const statement = messageStatement(message, session, signingKey);
  if (!verifyStatement(primitives, statement)) throw new MessageError('signature');
  const { sender, senderCounter, ciphertext } = message;
  if (sender === undefined) throw new MessageError('malformed', 'sender');
  const key = senderKey(primitives, sessionKey, session, sender);
  const associatedData = messageAssociatedData(session, sender, senderCounter);
  const plaintext = primitives.aead.open(key, messageNonce(senderCounter), ciphertext, associatedData);
  if (plaintext === undefined) throw new MessageError('decrypt');
  return plaintext;
}
