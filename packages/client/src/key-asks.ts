import {
  type KeyRejectionReason,
  type KeyRequest,
  KeyRequestKind,
  KeyRequestPriority,
  type RequestedKey,
} from '@keytrail/contracts';
import type { Primitives } from '@keytrail/crypto';
import { randomUuid } from './bytes.ts';
import type { Calls } from './calls.ts';
import { type KeyMissError, missOf, type RefusalError, type RemedyName, recoveryName, remedyName } from './errors.ts';
import { withSignal } from './flights.ts';
import { keyRefusalOf } from './key-refusal.ts';
import { type Operation, traceIdOf } from './tracing.ts';

export interface SessionName {
  readonly conversationId: string;
  readonly sessionId: string;
}

export interface KeyAsk extends SessionName {
  readonly kind: 'MISSING' | 'REWRAP';
  readonly priority: 'FOREGROUND' | 'BACKGROUND';
}

/** How a request stands after it was asked for. */
export interface AskedKey {
  readonly keyRequest: KeyRequest | undefined;
  readonly recovery: KeyMissError['recovery'];
  readonly remedy: RemedyName;
}

interface WaitingAsk {
  /** Of who asks; goes on when that one leaves. */
  readonly operation: Operation;
  readonly ask: KeyAsk;
  readonly answer: PromiseWithResolvers<AskedKey>;
}

export const keysPerCall = 200;

/** Asks for keys: at once while nothing is being asked, and else together with what else is wanted by then. */
export class KeyAsks {
  readonly #calls: Calls;
  readonly #primitives: Primitives;
  readonly #waiting: WaitingAsk[] = [];
  #asking = false;

  constructor(parts: { readonly calls: Calls; readonly primitives: Primitives }) {
    this.#calls = parts.calls;
    this.#primitives = parts.primitives;
  }

  /**
   * One key. Who leaves does not take back what was asked.
   *
   * @throws KeyMissError, RefusalError, or the signal's reason.
   */
  one(operation: Operation, ask: KeyAsk): Promise<AskedKey> {
    const lasting = { ...operation, signal: new AbortController().signal };
    const waiting = { ask, operation: lasting, answer: Promise.withResolvers<AskedKey>() };
    waiting.answer.promise.catch(() => {});
    this.#waiting.push(waiting);
    if (!this.#asking) void this.#askAll();
    return withSignal(waiting.answer.promise, operation.signal);
  }

  /**
   * Keys of up to `keysPerCall` sessions, each once: the answers in their order.
   *
   * @throws RefusalError, when the call as a whole was refused.
   */
  async many(
    operation: Operation,
    asks: readonly KeyAsk[],
    requestId = randomUuid(this.#primitives),
  ): Promise<(AskedKey | KeyMissError | RefusalError)[]> {
    const keys = asks.map(({ conversationId, sessionId, kind, priority }) => ({
      conversationId,
      sessionId,
      kind: KeyRequestKind[kind],
      priority: KeyRequestPriority[priority],
    }));
    const { results } = await this.#calls.call(operation, (options) =>
      this.#calls.session.requestKeys({ requestId, keys }, options),
    );
    if (results.length !== asks.length) throw new Error('the answer has other keys than were asked for');
    return results.map((result, i) =>
      result.refused === undefined
        ? askedOf(result)
        : keyRefusalOf(result.refused, asks[i] as KeyAsk, traceIdOf(operation)),
    );
  }

  /**
   * Tells that an envelope is wrong, and has the next holder asked.
   *
   * @throws KeyMissError, RefusalError.
   */
  async reject(
    operation: Operation,
    name: SessionName,
    attempt: number,
    reason: KeyRejectionReason,
    priority: KeyAsk['priority'] = 'FOREGROUND',
  ): Promise<AskedKey> {
    const requestId = randomUuid(this.#primitives);
    const request = { ...name, requestId, attempt, reason, priority: KeyRequestPriority[priority] };
    try {
      return askedOf(await this.#calls.call(operation, (options) => this.#calls.session.rejectKey(request, options)));
    } catch (error) {
      throw missOf(error, name) ?? error;
    }
  }

  async #askAll(): Promise<void> {
    this.#asking = true;
    try {
      while (this.#waiting.length > 0) await this.#askSome(this.#takeSome());
    } finally {
      this.#asking = false;
    }
  }

  /** Of one session only one is taken, since a call has each session once. */
  #takeSome(): WaitingAsk[] {
    const taken = new Map<string, WaitingAsk>();
    for (const waiting of this.#waiting) {
      const key = `${waiting.ask.conversationId} ${waiting.ask.sessionId}`;
      if (taken.size < keysPerCall && !taken.has(key)) taken.set(key, waiting);
    }
    const some = new Set(taken.values());
    const rest = this.#waiting.filter((waiting) => !some.has(waiting));
    this.#waiting.splice(0, this.#waiting.length, ...rest);
    return [...some];
  }

  async #askSome(asks: readonly WaitingAsk[]): Promise<void> {
    const [first] = asks;
    if (first === undefined) return;
    const { operation } = first;
    try {
      const results =
        asks.length === 1
          ? [await this.#askOne(operation, first.ask)]
          : await this.many(
              operation,
              asks.map(({ ask }) => ask),
            );
      for (const [i, { answer }] of asks.entries()) {
        const result = results[i];
        if (result === undefined || result instanceof Error) answer.reject(result);
        else answer.resolve(result);
      }
    } catch (error) {
      for (const { answer } of asks) answer.reject(error);
    }
  }

  async #askOne(operation: Operation, { kind, priority, ...name }: KeyAsk): Promise<AskedKey> {
    const requestId = randomUuid(this.#primitives);
    const request = { ...name, requestId, kind: KeyRequestKind[kind], priority: KeyRequestPriority[priority] };
    try {
      return askedOf(await this.#calls.call(operation, (options) => this.#calls.session.requestKey(request, options)));
    } catch (error) {
      throw missOf(error, name) ?? error;
    }
  }
}

function askedOf({
  keyRequest,
  recovery,
  remedy,
}: Pick<RequestedKey, 'recovery' | 'remedy'> & { readonly keyRequest?: KeyRequest | undefined }): AskedKey {
  return { keyRequest, recovery: recoveryName(recovery), remedy: remedyName(remedy) };
}
