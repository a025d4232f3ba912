import { Code, ConnectError } from '@connectrpc/connect';
import type { AttachResponse, Draining, Greeting, Notification } from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc/refusal';
import { context, ROOT_CONTEXT } from '@opentelemetry/api';
import type { Calls } from './calls.ts';
import { type Clock, pause } from './clock.ts';
import { cursors } from './cursors.ts';
import type { Emitter } from './emitter.ts';
import { errorOfCall } from './errors.ts';
import type { ClientEvents } from './events.ts';
import { withSignal } from './flights.ts';
import type { KeyStore } from './key-store.ts';
import { type Operation, untraced } from './tracing.ts';

export interface AttachmentParts {
  readonly calls: Calls;
  readonly store: KeyStore;
  readonly clock: Clock;
  readonly events: Emitter<ClientEvents>;
  readonly onAttached: (signal: AbortSignal, greeting: Greeting) => void;
  readonly onDetached: () => void;
  readonly onNotification: (notification: Notification, signal: AbortSignal) => void;
}

/** A gateway that has not greeted by then stands still, though its connection is open: the next one may not. */
const greetingMs = 5_000;
const firstWaitMs = 100;
const longestWaitMs = 10_000;
/** A stream that lived this long was a good one: the next loss starts with a short wait again. */
const goodStreamMs = 30_000;

/** Keeps this device attached: one stream after the other, each with a raised counter and heartbeats. */
export class Attachment {
  readonly #parts: AttachmentParts;
  #running: { control: AbortController; greeted: Promise<void>; ended: Promise<void> } | undefined;
  #attached = false;

  constructor(parts: AttachmentParts) {
    this.#parts = parts;
  }

  get isAttached(): boolean {
    return this.#attached;
  }

  /** For as long as this device is to stay attached; undefined while it is not attached. */
  get signal(): AbortSignal | undefined {
    return this.#attached ? this.#running?.control.signal : undefined;
  }

  /** Resolves at the first greeting. @throws RefusalError when the server will never let this caller attach. */
  attach(): Promise<void> {
    if (this.#running === undefined) {
      const control = new AbortController();
      const greeted = Promise.withResolvers<void>();
      // Outside of the caller's trace: the stream outlives it, and what it brings has traces of its own.
      const ended = context
        .with(ROOT_CONTEXT, () => this.#keepAttached(untraced(control.signal), greeted.resolve))
        .catch((error: unknown) => {
          if (!control.signal.aborted) this.#parts.events.emit('fault', { during: 'attach', error });
          greeted.reject(error);
        })
        .finally(() => {
          if (this.#running?.control === control) this.#running = undefined;
          this.#parts.events.emit('state', { state: 'detached' });
        });
      greeted.promise.catch(() => {});
      this.#running = { control, greeted: greeted.promise, ended };
    }
    return this.#running.greeted;
  }

  async detach(): Promise<void> {
    const running = this.#running;
    running?.control.abort(new Error('detached'));
    await running?.ended;
  }

  async #keepAttached(operation: Operation, greeted: () => void): Promise<void> {
    const { calls, clock, events } = this.#parts;
    for (let losses = 0; ; losses += 1) {
      events.emit('state', { state: 'attaching' });
      const startedAt = clock.now().getTime();
      let toldMs: number | undefined;
      let notBeforeMs = 0;
      let lost: unknown;
      let held = false;
      const greetedNow = () => {
        held = true;
        greeted();
      };
      try {
        toldMs = (await this.#attachOnce(operation, greetedNow))?.reconnectAfterMs;
      } catch (error) {
        if (operation.signal.aborted) throw operation.signal.reason;
        // A stream that outlived its token is opened again with a fresh one.
        if (isForGood(error) && !(held && isExpired(error))) throw errorOfCall(error);
        lost = errorOfCall(error);
        notBeforeMs = readRefusal(error).retryAfterMs ?? 0;
      }
      if (clock.now().getTime() - startedAt >= goodStreamMs) losses = 0;
      const backoffMs = Math.min(firstWaitMs * 2 ** losses, longestWaitMs);
      events.emit('state', { state: 'waiting', ...(lost !== undefined && { error: lost }) });
      // Whoever was told when to come again does not come sooner, and not all at that moment.
      const asToldMs = notBeforeMs + calls.jittered(notBeforeMs / 4);
      await pause(clock, Math.max(calls.jittered(toldMs ?? backoffMs), asToldMs), operation.signal, true);
    }
  }

  /** One stream from attach to its end; what it said of draining. */
  async #attachOnce(operation: Operation, greeted: () => void): Promise<Draining | undefined> {
    const { calls, clock, store, events, onAttached, onDetached, onNotification } = this.#parts;
    const [reserved, conversationCursor = '', sessionCursor = ''] = await Promise.all([
      store.reserve('attachments', 1),
      store.cursor(cursors.conversations),
      store.cursor(cursors.keys),
    ]);
    operation.signal.throwIfAborted();
    const request = { attachCounter: reserved + 1n, conversationCursor, sessionCursor };
    const control = new AbortController();
    const signal = AbortSignal.any([operation.signal, control.signal]);
    const stream = calls.once({ ...operation, signal }, (options) => calls.presence.attach(request, options));
    const failed = Promise.withResolvers<never>();
    failed.promise.catch(() => {});
    const messages = stream[Symbol.asyncIterator]();
    const notGreeted = () => failed.reject(new ConnectError('no greeting came', Code.DeadlineExceeded));
    const callOffGreeting = clock.after(greetingMs, notGreeted, { background: true });
    try {
      for (;;) {
        // A transport may be slow to notice that a stream is dead: the heartbeat notices too.
        const next = await withSignal<IteratorResult<AttachResponse>>(
          Promise.race([messages.next(), failed.promise]),
          signal,
        );
        if (next.done === true) return undefined;
        const { message } = next.value;
        if (message.case === 'draining') return message.value;
        if (message.case === 'notification') onNotification(message.value, operation.signal);
        if (message.case === 'greeting') {
          callOffGreeting();
          this.#attached = true;
          void this.#beat(operation, signal, message.value).catch(failed.reject);
          events.emit('state', { state: 'attached' });
          greeted();
          onAttached(operation.signal, message.value);
        }
      }
    } finally {
      callOffGreeting();
      control.abort(new Error('the stream has ended'));
      if (this.#attached) {
        this.#attached = false;
        onDetached();
      }
    }
  }

  async #beat(
    operation: Operation,
    signal: AbortSignal,
    { connectionId, heartbeatIntervalMs }: Greeting,
  ): Promise<never> {
    const { calls, clock } = this.#parts;
    const now = () => clock.now().getTime();
    const silenceMs = heartbeatIntervalMs * 3;
    for (let heardAt = now(), waitMs = heartbeatIntervalMs; ; ) {
      await pause(clock, waitMs, signal, true);
      const sentAt = now();
      // Whoever does not answer for three intervals is gone, also when it takes its time to be found so.
      const timeoutMs = Math.max(1, Math.min(heartbeatIntervalMs, heardAt + silenceMs - sentAt));
      try {
        await calls.once({ ...operation, signal }, (options) =>
          calls.presence.heartbeat({ connectionId }, { ...options, timeoutMs }),
        );
        heardAt = now();
      } catch (error) {
        if (now() - heardAt >= silenceMs || readRefusal(error).reason === 'CONNECTION_UNKNOWN') throw error;
      }
      waitMs = Math.max(heartbeatIntervalMs / 10, heartbeatIntervalMs - (now() - sentAt));
    }
  }
}

function isExpired(error: unknown): boolean {
  const { reason, metadata } = readRefusal(error);
  return reason === 'TOKEN_INVALID' && metadata.problem === 'expired';
}

/** Attaching again would be refused again. What has no reason was not said by a service: a proxy, say, or a network that wants a login first. */
function isForGood(error: unknown): boolean {
  const { reason } = readRefusal(error);
  if (reason === '') return false;
  if (['DEVICE_REVOKED', 'DEVICE_NOT_REGISTERED'].includes(reason)) return true;
  const code = ConnectError.from(error).code;
  return [Code.Unauthenticated, Code.PermissionDenied, Code.InvalidArgument, Code.Unimplemented].includes(code);
}
