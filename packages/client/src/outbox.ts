import { fromBinary, toBinary } from '@bufbuild/protobuf';
import { type SendMessageRequest, SendMessageRequestSchema } from '@keytrail/contracts';
import { randomUuid } from './bytes.ts';
import { pause } from './clock.ts';
import { isDecided, KeyMissError, RefusalError } from './errors.ts';
import type { StoredOutgoing } from './key-store.ts';
import { type MessageParts, type SentMessage, sendMessage } from './messages.ts';
import { Reruns } from './reruns.ts';

/** A message that waits to be sent, as the application sees it. */
export interface WaitingMessage {
  readonly id: string;
  readonly conversationId: string;
  readonly plaintext: Uint8Array;
  readonly enqueuedAt: Date;
}

export interface OutboxParts extends MessageParts {
  readonly onSent: (conversationId: string, sent: SentMessage) => void;
}

const firstWaitMs = 500;
const longestWaitMs = 30_000;

/**
 * Messages that are sent when that is possible: in the order of each conversation, each exactly once. What is encrypted is kept before it is
 * sent, so that after a crash the same request is sent again, and the service knows it.
 */
export class Outbox {
  readonly #parts: OutboxParts;
  readonly #signal: AbortSignal;
  readonly #sending = new Reruns();
  /** Cuts the wait short of those who wait for better times. */
  #better = new AbortController();

  constructor(parts: OutboxParts, signal: AbortSignal) {
    this.#parts = parts;
    this.#signal = signal;
  }

  /** Durable when it resolves; then it is on its way. */
  async enqueue(conversationId: string, plaintext: Uint8Array): Promise<{ id: string }> {
    const { store, primitives, clock } = this.#parts;
    const id = randomUuid(primitives);
    const position = await store.reserve('outgoing', 1);
    await store.saveOutgoing({ id, position, conversationId, plaintext, enqueuedAt: clock.now() });
    this.#send(conversationId);
    return { id };
  }

  async waiting(): Promise<WaitingMessage[]> {
    const messages = await this.#parts.store.outgoing();
    return messages.map(({ id, conversationId, plaintext, enqueuedAt }) => ({
      id,
      conversationId,
      plaintext,
      enqueuedAt,
    }));
  }

  /** The servers can be reached again, as it seems. */
  async resume(): Promise<void> {
    this.#better.abort();
    this.#better = new AbortController();
    const waiting = await this.#parts.store.outgoing();
    for (const conversationId of new Set(waiting.map((message) => message.conversationId))) this.#send(conversationId);
  }

  #send(conversationId: string): void {
    const sending = this.#sending.run(conversationId, () => this.#sendAll(conversationId));
    this.#parts.background('send messages that waited', sending);
  }

  async #sendAll(conversationId: string): Promise<void> {
    const { store } = this.#parts;
    for (;;) {
      // Read once for all of them: a device that was away for long has many.
      const waiting = (await store.outgoing()).filter((message) => message.conversationId === conversationId);
      if (waiting.length === 0) return;
      for (const message of waiting) await this.#sendUntilDecided(message);
    }
  }

  async #sendUntilDecided(message: StoredOutgoing): Promise<void> {
    const { store, clock, calls, events } = this.#parts;
    const { id, conversationId } = message;
    for (let failures = 0, kept = message; ; failures += 1) {
      this.#signal.throwIfAborted();
      try {
        const keep = async (next: SendMessageRequest) => {
          const prepared = { ...message, request: toBinary(SendMessageRequestSchema, next) };
          await store.saveOutgoing(prepared);
          kept = prepared;
        };
        return await this.#sendOne(kept, keep);
      } catch (error) {
        this.#signal.throwIfAborted();
        if (isFinal(error)) {
          await store.removeOutgoing(id);
          events.emit('messageNotSent', { id, conversationId, error });
          return;
        }
        if (isDecided(error) || !(error instanceof RefusalError)) {
          events.emit('fault', { during: 'send messages that waited', error });
        }
        const waitMs = calls.jittered(Math.min(firstWaitMs * 2 ** failures, longestWaitMs));
        await pause(clock, waitMs, AbortSignal.any([this.#signal, this.#better.signal]), true).catch(() => {});
      }
    }
  }

  async #sendOne(message: StoredOutgoing, keep: (request: SendMessageRequest) => Promise<void>): Promise<void> {
    const { store, tracing, events } = this.#parts;
    const { id, conversationId, plaintext, request } = message;
    const prepared = request && fromBinary(SendMessageRequestSchema, request);
    const sent = await tracing.run('send message', { signal: this.#signal }, (operation) =>
      sendMessage(this.#parts, operation, conversationId, plaintext, { prepared, keep }),
    );
    await store.removeOutgoing(id);
    const { sequence, sessionId, epoch } = sent;
    events.emit('messageSent', { id, conversationId, sequence, sessionId, epoch });
    this.#parts.onSent(conversationId, sent);
  }
}

/** What the service says of the message itself, or of who sends it; whatever else is in the way may pass. */
const final = new Set([
  'NOT_FOUND_OR_NOT_PERMITTED',
  'CONVERSATION_CLOSED',
  'NOT_ENTITLED',
  'DEVICE_REVOKED',
  'USER_ERASED',
  'INVALID_FIELD',
  'SIGNATURE_INVALID',
  'REQUEST_ID_REUSED',
]);

/** Trying again would fail again. A key that is missing may still come, unless it is refused for good. */
function isFinal(error: unknown): error is Error {
  if (error instanceof KeyMissError) return error.recovery === 'NOT_PERMITTED';
  return isDecided(error) && final.has(error.reason);
}
