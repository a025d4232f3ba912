import {
  type CallOptions,
  type Client,
  Code,
  ConnectError,
  createClient,
  createContextValues,
  type Transport,
} from '@connectrpc/connect';
import { ConversationService, IdentityKeysService, PresenceService, SessionService } from '@keytrail/contracts';
import type { Primitives } from '@keytrail/crypto';
import { readRefusal } from '@keytrail/rpc/refusal';
import { context } from '@opentelemetry/api';
import { type Clock, pause } from './clock.ts';
import { errorOfCall } from './errors.ts';
import { type Operation, traceIdOf, traceparentOf } from './tracing.ts';
import { callingContext } from './web-spans.ts';

/** One transport for each service; `close` is called when the client is closed. */
export interface Transports {
  readonly identityKeys: Transport;
  readonly conversation: Transport;
  readonly session: Transport;
  readonly presence: Transport;
  close?(): void;
}

export interface RetryOptions {
  /** Tries after the first; 3 by default. */
  readonly retries?: number;
  /** Before the first retry, doubled for each further one, jittered; 100 by default. */
  readonly backoffMs?: number;
  /** 5000 by default. */
  readonly maxBackoffMs?: number;
}

/** The services, called within an operation: in its trace, until its signal, and again when a service was out of reach. */
export class Calls {
  readonly identityKeys: Client<typeof IdentityKeysService>;
  readonly conversation: Client<typeof ConversationService>;
  readonly session: Client<typeof SessionService>;
  readonly presence: Client<typeof PresenceService>;
  readonly #clock: Clock;
  readonly #primitives: Primitives;
  readonly #retry: Required<RetryOptions>;
  readonly #onFailure: (error: unknown) => void;

  constructor(
    transports: Transports,
    parts: {
      clock: Clock;
      primitives: Primitives;
      retry: RetryOptions | undefined;
      /** Told of each call that failed for good. */
      onFailure?: (error: unknown) => void;
    },
  ) {
    this.identityKeys = createClient(IdentityKeysService, transports.identityKeys);
    this.conversation = createClient(ConversationService, transports.conversation);
    this.session = createClient(SessionService, transports.session);
    this.presence = createClient(PresenceService, transports.presence);
    this.#clock = parts.clock;
    this.#primitives = parts.primitives;
    this.#onFailure = parts.onFailure ?? (() => {});
    this.#retry = { retries: 3, backoffMs: 100, maxBackoffMs: 5_000, ...parts.retry };
  }

  /**
   * Makes a call, and makes the same one again when it could not be answered: every method of the contract may be repeated.
   *
   * @throws RefusalError, or the signal's reason.
   */
  async call<T>(operation: Operation, rpc: (options: CallOptions) => Promise<T>): Promise<T> {
    for (let tried = 0; ; tried += 1) {
      try {
        return await this.once(operation, rpc);
      } catch (thrown) {
        if (operation.signal.aborted) throw operation.signal.reason;
        const waitMs = tried < this.#retry.retries ? this.#waitMs(thrown, tried) : undefined;
        if (waitMs === undefined) {
          const error = errorOfCall(thrown, traceIdOf(operation));
          this.#onFailure(error);
          throw error;
        }
        await pause(this.#clock, waitMs, operation.signal);
      }
    }
  }

  /** Makes a call once; what it throws is the transport's. */
  once<T>(operation: Operation, rpc: (options: CallOptions) => T): T {
    const traceparent = traceparentOf(operation);
    const options = {
      signal: operation.signal,
      contextValues: createContextValues().set(callingContext, operation.context),
      ...(traceparent && { headers: { traceparent } }),
    };
    return context.with(operation.context, () => rpc(options));
  }

  /** A wait of up to twice and at least half of `ms`. */
  jittered(ms: number): number {
    return ms * (0.5 + ((this.#primitives.randomBytes(1)[0] ?? 0) / 256) * 1.5);
  }

  #waitMs(thrown: unknown, tried: number): number | undefined {
    const { code, retryAfterMs } = readRefusal(thrown);
    const again =
      code === Code.Unavailable ||
      isNetworkFailure(thrown) ||
      (code === Code.ResourceExhausted && retryAfterMs !== undefined);
    if (!again) return undefined;
    const backoffMs = Math.min(this.#retry.backoffMs * 2 ** tried, this.#retry.maxBackoffMs);
    return Math.max(this.jittered(backoffMs), Math.min(retryAfterMs ?? 0, this.#retry.maxBackoffMs));
  }
}

/** `fetch` says TypeError when the network fails, and Connect has no code for it. */
function isNetworkFailure(thrown: unknown): boolean {
  return thrown instanceof ConnectError && thrown.code === Code.Unknown && thrown.cause instanceof TypeError;
}
