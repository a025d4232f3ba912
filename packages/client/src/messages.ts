import { create } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import {
  type Message,
  type RotationDueReason,
  type SendMessageRequest,
  SendMessageRequestSchema,
} from '@keytrail/contracts';
import { decryptMessage, encryptMessage, type Ref } from '@keytrail/crypto';
import { randomUuid } from './bytes.ts';
import type { Conversations } from './conversations.ts';
import type { DeviceLogs } from './device-logs.ts';
import { KeyMissError, MessageErasedError, RefusalError, RotationLost, SessionRefusedError } from './errors.ts';
import type { KeyStore } from './key-store.ts';
import type { OpeningParts, OpenOptions, SessionOpener } from './open-session.ts';
import type { HeldSession } from './sessions.ts';
import type { Operation } from './tracing.ts';

export interface SentMessage {
  readonly sequence: bigint;
  readonly sessionId: string;
  readonly epoch: bigint;
  readonly rotationDue: RotationDueReason;
}

interface ReceivedMessage {
  readonly sequence: bigint;
  readonly sender: Ref;
  /** Of the sender, under this session: no two of its messages have the same. */
  readonly senderCounter: bigint;
  /** The server's time. */
  readonly sentAt: Date;
  readonly sessionId: string;
  readonly epoch: bigint;
}

/** A message as far as this device can read it. */
export type ReadMessage =
  | (ReceivedMessage & {
      readonly plaintext: Uint8Array;
      /** The plaintext as UTF-8. */
      readonly text: string;
    })
  | (ReceivedMessage & {
      /** A KeyMissError when the key is missing, else what did not verify. */
      readonly error: Error;
    });

export interface ReadOptions extends OpenOptions {
  /** The last sequence that the caller has. */
  readonly after?: bigint;
  /** Without it everything there is. */
  readonly limit?: number;
}

export interface MessageParts extends OpeningParts {
  readonly store: KeyStore;
  readonly conversations: Conversations;
  readonly opener: SessionOpener;
  readonly logs: DeviceLogs;
}

export interface SendingOptions {
  /** A request that may have been sent before: it goes out again as it is, unless it is refused. */
  readonly prepared?: SendMessageRequest | undefined;
  /** Called with each request before it is sent for the first time. */
  readonly keep?: (request: SendMessageRequest) => Promise<void>;
}

const triesAtMost = 4;
const readTimeoutMs = 10_000;
const messagesPerPage = 500;

/**
 * Encrypts and sends under the current session. When a rotation is required, it is made, or the winner's session used, and the message
 * encrypted anew: only then does it get another request id. Nothing is sent under a session that a device may read of which this one has seen
 * that it is revoked, whether or not the server says so.
 *
 * @throws SessionRefusedError (`revoked-reader`) when no other session is to be had.
 */
export async function sendMessage(
  parts: MessageParts,
  operation: Operation,
  conversationId: string,
  plaintext: Uint8Array,
  { prepared, keep = async () => {} }: SendingOptions = {},
): Promise<SentMessage> {
  let sessionId = prepared?.sessionId ?? (await parts.conversations.recent(operation, conversationId)).sessionId;
  for (let tries = 1; ; tries += 1) {
    try {
      if (prepared === undefined || tries > 1) {
        return await sendUnder(parts, operation, { conversationId, sessionId }, plaintext, keep);
      }
      const held = await parts.sessions.find(conversationId, sessionId);
      return await postMessage(parts, operation, prepared, held?.session.epoch ?? 0n);
    } catch (error) {
      if (!needsNewerSession(error) || tries >= triesAtMost) throw error;
      sessionId = await newerSession(parts, operation, conversationId, sessionId);
    }
  }
}

/** A member who came after the current session was made has no key to send under until there is a newer one; nor has anybody, where no holder is left. */
function needsNewerSession(error: unknown): boolean {
  if (error instanceof KeyMissError) {
    const { cause, recovery } = error;
    return cause === 'HISTORY_NOT_SHARED' || cause === 'NOT_A_MEMBER_AT_EPOCH' || recovery === 'NO_HOLDER_EXISTS';
  }
  if (error instanceof SessionRefusedError) return error.problem === 'revoked-reader';
  return error instanceof RefusalError && error.reason === 'ROTATION_REQUIRED';
}

async function sendUnder(
  parts: MessageParts,
  operation: Operation,
  name: { conversationId: string; sessionId: string },
  plaintext: Uint8Array,
  keep: (request: SendMessageRequest) => Promise<void>,
): Promise<SentMessage> {
  const { primitives, store } = parts;
  const own = await parts.own.registered();
  const { held } = await parts.opener.open(name, { signal: operation.signal }, operation);
  const { session, sessionKey } = held;
  if (await parts.logs.revokedSince(session.header.deviceLists)) {
    throw new SessionRefusedError('revoked-reader', 'a device that was revoked since may read it');
  }
  // Taken for ever before it is used: a nonce that is used twice would tell both texts.
  const senderCounter = await store.reserve(`sent ${name.conversationId} ${name.sessionId}`, 1);
  const encrypted = encryptMessage({ primitives, sessionKey, session, sender: own, senderCounter, plaintext });
  const request = create(SendMessageRequestSchema, { requestId: randomUuid(primitives), ...encrypted });
  await keep(request);
  return postMessage(parts, operation, request, session.epoch);
}

/** Sends an encrypted message; the same one again is the same message, however often it arrives. */
async function postMessage(
  { calls }: MessageParts,
  operation: Operation,
  request: SendMessageRequest,
  epoch: bigint,
): Promise<SentMessage> {
  const { sequence, rotationDue } = await calls.call(operation, (options) =>
    calls.conversation.sendMessage(request, options),
  );
  return { sequence, sessionId: request.sessionId, epoch, rotationDue };
}

async function newerSession(
  { conversations }: MessageParts,
  operation: Operation,
  conversationId: string,
  sessionId: string,
): Promise<string> {
  const current = await conversations.get(operation, conversationId);
  if (current.sessionId !== sessionId) return current.sessionId;
  try {
    return (await conversations.rotate(operation, conversationId)).sessionId;
  } catch (error) {
    if (!(error instanceof RotationLost)) throw error;
    return error.winner.sessionId;
  }
}

/**
 * Reads the log, and decrypts what it can; what it cannot is there with its error, a MessageErasedError for what erased users sent: only the
 * server says so, and a message left out would be one hidden. Each session is opened once.
 */
export async function readMessages(
  parts: MessageParts,
  operation: Operation,
  conversationId: string,
  options: ReadOptions,
): Promise<ReadMessage[]> {
  const messages = await listMessages(parts, operation, conversationId, options);
  return decryptMessages(parts, operation, conversationId, messages, options);
}

/** Decrypts messages of a conversation, wherever they came from. */
export async function decryptMessages(
  parts: MessageParts,
  operation: Operation,
  conversationId: string,
  messages: readonly Message[],
  options: OpenOptions,
): Promise<ReadMessage[]> {
  const { recover = true, waitForHolder = false, timeoutMs = readTimeoutMs } = options;
  const how = { recover, waitForHolder, timeoutMs, signal: operation.signal };
  const readable = messages.filter(({ erasedAt }) => erasedAt === undefined);
  const sessionIds = [...new Set(readable.map(({ sessionId }) => sessionId))];
  const sessions = new Map(
    await Promise.all(
      sessionIds.map(async (sessionId): Promise<[string, HeldSession | Error]> => {
        try {
          return [sessionId, (await parts.opener.open({ conversationId, sessionId }, how, operation)).held];
        } catch (error) {
          if (operation.signal.aborted) throw operation.signal.reason;
          return [sessionId, error instanceof Error ? error : new Error(String(error))];
        }
      }),
    ),
  );
  return Promise.all(messages.map((message) => read(parts, operation, message, sessions.get(message.sessionId))));
}

/** Fewer than `limit` only where there are no more: a page of large messages has fewer than were asked for. */
export async function listMessages(
  { calls }: MessageParts,
  operation: Operation,
  conversationId: string,
  { after = 0n, limit = Number.POSITIVE_INFINITY }: Pick<ReadOptions, 'after' | 'limit'>,
): Promise<Message[]> {
  const all: Message[] = [];
  for (let afterSequence = after; ; ) {
    const request = { conversationId, afterSequence, limit: Math.min(limit - all.length, messagesPerPage) };
    const { messages, more } = await calls.call(operation, (options) =>
      calls.conversation.listMessages(request, options),
    );
    all.push(...messages);
    const last = messages.at(-1);
    if (!more || all.length >= limit || last === undefined) return all;
    afterSequence = last.sequence;
  }
}

async function read(
  { directory, primitives }: MessageParts,
  operation: Operation,
  message: Message,
  session: HeldSession | Error | undefined,
): Promise<ReadMessage> {
  const { sequence, sessionId, epoch, senderCounter, sentAt } = message;
  const sender = { userId: message.sender?.userId ?? '', deviceId: message.sender?.deviceId ?? '' };
  const received = {
    sequence,
    sender,
    senderCounter,
    sessionId,
    epoch,
    sentAt: sentAt ? timestampDate(sentAt) : new Date(0),
  };
  if (message.erasedAt) return { ...received, error: new MessageErasedError(timestampDate(message.erasedAt)) };
  if (session === undefined || session instanceof Error) {
    return { ...received, error: session ?? new Error('the session was not opened') };
  }
  try {
    const signingKey = await directory.signingKeyOf(operation, sender);
    const { sessionKey } = session;
    const plaintext = decryptMessage({ primitives, sessionKey, session: session.session, message, signingKey });
    return { ...received, plaintext, text: new TextDecoder().decode(plaintext) };
  } catch (error) {
    if (operation.signal.aborted) throw operation.signal.reason;
    return { ...received, error: error instanceof Error ? error : new Error(String(error)) };
  }
}
