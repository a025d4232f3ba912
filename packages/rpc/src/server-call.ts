import type { Message } from '@bufbuild/protobuf';
import { type Caller, serviceScheme, type Wire } from '@keytrail/auth';
import {
  attr,
  type Context,
  context,
  contextFromTraceparent,
  followSampling,
  isSampled,
  markMiss,
  pseudonym,
  ROOT_CONTEXT,
  recordError,
  type Span,
  SpanStatusCode,
  type Telemetry,
  trace,
  tracer,
} from '@keytrail/telemetry';
import { type AnsweredRefusal, answerRefusal } from './answer-refusal.ts';
import type { Call } from './call.ts';
import { codeName, isServerError, okCode } from './codes.ts';
import type { Endpoint } from './endpoint.ts';
import type { Use } from './limits.ts';
import { refuse } from './refusal.ts';

const anonymous: Caller = Object.freeze({ kind: 'anonymous' });
const longestTimerMs = 2_147_483_647;

/** What a wire knows about a call before its request is read. */
export interface Arrival {
  readonly wire: Wire;
  readonly authorization: string | undefined;
  readonly traceparent: string | undefined;
  /** What the caller asked for; NaN when that cannot be read. */
  readonly timeoutMs: number | undefined;
}

/**
 * One call from its arrival to its answer, whichever wire it came on. It is answered once: by its handler, by its deadline,
 * by its caller giving up, or by the end of a drain; whatever comes later is dropped.
 */
export abstract class ServerCall implements Call {
  readonly endpoint: Endpoint;
  readonly arrival: Arrival;
  readonly deadlineAt: number;
  readonly traceId: string;
  readonly context: Context;
  caller: Caller = anonymous;
  answered = false;

  readonly #span: Span;
  readonly #startedAt = performance.now();
  #controller: AbortController | undefined;
  #abortReason: unknown;
  #timer: NodeJS.Timeout | undefined;
  #use: Use | undefined;
  #methodUse: Use | undefined;

  constructor(endpoint: Endpoint, arrival: Arrival) {
    this.endpoint = endpoint;
    this.arrival = arrival;
    const { traceparent, wire } = arrival;
    // Who calls is not known yet, only who it claims to be: see identified.
    const sampling = arrival.authorization?.startsWith(serviceScheme) ? 'later' : 'ours';
    const parent = traceparent === undefined ? ROOT_CONTEXT : contextFromTraceparent(traceparent, { sampling });
    this.#span = tracer().startSpan(endpoint.name, endpoint.span[wire], parent);
    this.context = trace.setSpan(parent, this.#span);
    this.traceId = this.#span.spanContext().traceId;
    this.deadlineAt = deadlineOf(endpoint, arrival.timeoutMs);
    endpoint.parts.open.add(this);
  }

  /** Reads the request. Throws, or rejects with, a refusal. */
  abstract read(): Message | Promise<Message>;
  /** Sends one message; for a stream, resolves when the next one may be sent. Throws when it cannot be encoded. */
  abstract send(message: object): void | Promise<void>;
  /** Ends an answer that succeeded. */
  protected abstract end(): void;
  protected abstract sendRefusal(refusal: AnsweredRefusal): void;

  get method(): string {
    return this.endpoint.name;
  }

  get wire(): Wire {
    return this.arrival.wire;
  }

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.#abortReason !== undefined) this.#controller.abort(this.#abortReason);
    }
    return this.#controller.signal;
  }

  get draining(): AbortSignal {
    return this.endpoint.parts.draining;
  }

  get log(): Telemetry['log'] {
    return this.endpoint.parts.telemetry.log;
  }

  /** The build that answers, for the trailers. */
  get build(): string {
    return this.endpoint.parts.telemetry.build.writerBuild;
  }

  /** Who calls is known. Of a peer the wish to have the trace sampled is followed; devices and strangers would flood the collector. */
  identified(caller: Caller): void {
    this.caller = caller;
    const { traceparent } = this.arrival;
    if (caller.kind === 'service' && traceparent !== undefined && isSampled(traceparent)) followSampling(this.#span);
  }

  /** The digest of the contracts that it was made with, for the trailers. */
  get contract(): string {
    return this.endpoint.parts.telemetry.build.contractDigest;
  }

  startDeadline(): void {
    if (Number.isNaN(this.deadlineAt)) throw invalidTimeout();
    if (this.deadlineAt === Number.POSITIVE_INFINITY) return;
    const remainingMs = this.deadlineAt - Date.now();
    this.#timer = setTimeout(passDeadline, Math.min(Math.max(0, remainingMs), longestTimerMs), this);
  }

  enterLimits(): void {
    const { limiter, parts } = this.endpoint;
    this.#use = parts.limiter.enter(this.caller);
    this.#methodUse = limiter?.enter(this.caller);
  }

  /** Ends a stream whose messages have been sent, or a unary call after its one message. */
  succeed(): void {
    if (this.answered) return;
    this.end();
    this.#close(okCode);
  }

  /** Answers with a refusal: the error itself when it is one, else INTERNAL_FAULT. */
  fail(error: unknown): void {
    if (this.answered) return;
    const { helpBaseUrl } = this.endpoint.parts.config;
    const refusal = answerRefusal(error, { traceId: this.traceId, helpBaseUrl });
    this.#report(error, refusal);
    this.#close(refusal.code);
    try {
      this.sendRefusal(refusal);
    } catch (unsendable) {
      this.log.warn({ error: unsendable, method: this.method }, 'a refusal could not be sent');
    }
  }

  passDeadline(): void {
    if (this.answered) return;
    this.#abort(refuse('DEADLINE_EXCEEDED', 'the deadline passed before the answer was ready'));
  }

  /** The caller hung up. */
  giveUp(): void {
    // Wires say so after each call that ended well, too.
    if (this.answered) return;
    // A peer's clock that fires first makes its deadline look like a hang-up.
    if (Date.now() >= this.deadlineAt) this.passDeadline();
    else this.#abort(refuse('CANCELLED', 'the caller gave the call up'));
  }

  /** The drain has run out of time. */
  forceEnd(): void {
    if (this.answered) return;
    this.#abort(refuse('SHUTTING_DOWN', 'this process stops; another replica answers', { retryAfterMs: 500 }));
  }

  #abort(reason: Error): void {
    this.#abortReason = reason;
    this.fail(reason);
    this.#controller?.abort(reason);
  }

  #report(error: unknown, refusal: AnsweredRefusal): void {
    const span = this.#span;
    const { caller, method } = this;
    if (caller.kind === 'device') {
      span.setAttribute(attr.user, pseudonym(caller.userId));
      span.setAttribute(attr.device, pseudonym(caller.deviceId));
    }
    if (refusal.miss !== undefined) context.with(this.context, markMiss, undefined, refusal.reason);
    else span.setAttribute(attr.reason, refusal.reason);
    if (refusal.fault) {
      recordError(span, error);
      context.with(this.context, () => this.log.error({ error, method }, 'a call ended in a fault'));
      return;
    }
    const told = { method, code: codeName(refusal.code), reason: refusal.reason };
    context.with(this.context, () =>
      this.log.info(told, refusal.miss ? 'a call ended in a miss' : 'a call was refused'),
    );
    if (isServerError(refusal.code) && this.endpoint.rpc !== undefined) {
      span.setAttribute(attr.errorType, refusal.reason);
      span.setStatus({ code: SpanStatusCode.ERROR, message: refusal.message });
    }
  }

  #close(code: number): void {
    this.answered = true;
    clearTimeout(this.#timer);
    const { endpoint } = this;
    endpoint.parts.open.delete(this);
    endpoint.parts.limiter.leave(this.#use);
    endpoint.limiter?.leave(this.#methodUse);
    this.#span.setAttribute(attr.caller, this.caller.kind);
    this.#span.setAttribute(attr.rpcStatusCode, codeName(code));
    this.#span.end();
    endpoint.measure[this.wire].record(code, this.#startedAt);
  }
}

function passDeadline(call: ServerCall): void {
  call.passDeadline();
}

function deadlineOf({ rpc, parts }: Endpoint, timeoutMs: number | undefined): number {
  if (rpc?.kind === 'server_streaming')
    return timeoutMs === undefined ? Number.POSITIVE_INFINITY : Date.now() + timeoutMs;
  const { defaultDeadlineMs, maxDeadlineMs } = parts.config;
  return Date.now() + Math.min(timeoutMs ?? defaultDeadlineMs, maxDeadlineMs);
}

function invalidTimeout(): Error {
  const field = 'timeout';
  const description = 'the timeout of the call cannot be read';
  return refuse('INVALID_FIELD', description, { metadata: { field }, fields: [{ field, description }] });
}
