import type { Context, SpanContext } from '@opentelemetry/api';
import {
  trace as apiTrace,
  context,
  isSpanContextValid,
  ROOT_CONTEXT,
  SpanStatusCode,
  TraceFlags,
} from '@opentelemetry/api';
import { attr } from './attributes.ts';
import { newTraceId } from './ids.ts';
import { localPartOf } from './local-parts.ts';
import { RecordedSpan } from './recorded-span.ts';
import type { Recorder } from './recorder.ts';
import { describeError } from './redaction.ts';
import {
  type Declared,
  type Link,
  type Span,
  type SpanAttributes,
  type SpanStart,
  type Tracer,
  trace,
} from './typed-spans.ts';

let recorder: Recorder | undefined;

/** Makes the functions of this file record; without a recorder they are no-ops that still run the work. */
export function record(into: Recorder | undefined): void {
  recorder = into;
}

/** The tracer of this process; a no-op before startTelemetry. Ask again rather than hold on to it. */
export function tracer(): Tracer {
  return recorder ?? apiTrace.getTracer('keytrail');
}

export interface SpanSettings<Given extends SpanAttributes = SpanAttributes>
  extends Pick<SpanStart<Given>, 'kind' | 'attributes' | 'links'> {
  /** The context to start from; the active one by default. */
  readonly parent?: Context;
  /** Whether what the work threw is an error of this span; an expected refusal is not. By default everything is. */
  readonly isError?: (thrown: unknown) => boolean;
}

/**
 * Runs the work in a span of its own, which ends when the work does. What it throws is recorded, makes the status ERROR,
 * and is thrown on.
 */
export function withSpan<T, Given extends SpanAttributes>(
  name: string,
  settings: SpanSettings<Given>,
  work: (span: Span) => Promise<T>,
): Promise<T>;
export function withSpan<T, Given extends SpanAttributes>(
  name: string,
  settings: SpanSettings<Given>,
  work: (span: Span) => T,
): T;
export function withSpan<T>(
  name: string,
  settings: SpanSettings,
  work: (span: Span) => T | Promise<T>,
): T | Promise<T> {
  const parent = settings.parent ?? context.active();
  const span = tracer().startSpan(name, settings, parent);
  let result: T | Promise<T>;
  try {
    result = context.with(trace.setSpan(parent, span), work, undefined, span);
  } catch (thrown) {
    endWith(span, settings, thrown);
    throw thrown;
  }
  if (!isThenable(result)) {
    span.end();
    return result;
  }
  return result.then(
    (value) => {
      span.end();
      return value;
    },
    (thrown) => {
      endWith(span, settings, thrown);
      throw thrown;
    },
  );
}

// Prisma's promises are not Promises.
function isThenable<T>(result: T | PromiseLike<T>): result is PromiseLike<T> {
  return typeof (result as PromiseLike<T> | undefined)?.then === 'function';
}

function endWith(span: Span, { isError }: SpanSettings, thrown: unknown): void {
  if (isError === undefined || isError(thrown)) recordError(span, thrown);
  span.end();
}

/** Records an error on a span, without secrets, and sets its status. Does not end it. */
export function recordError(span: Span, thrown: unknown): void {
  if (!span.isRecording()) return;
  const error = describeError(thrown);
  span.recordException({ name: error.type, message: error.message, ...(error.stack && { stack: error.stack }) });
  span.setAttribute(attr.errorType, error.type);
  span.setStatus({ code: SpanStatusCode.ERROR, message: error.message });
}

/** Trace id of the active span, 32 hex digits; '' without one. */
export function currentTraceId(): string {
  const active = trace.getActiveSpan()?.spanContext();
  return active !== undefined && isSpanContextValid(active) ? active.traceId : '';
}

/** W3C traceparent of the active span; its sampled flag is set once this trace is certain to be exported. '' without a span. */
export function currentTraceparent(): string {
  const span = trace.getActiveSpan();
  return span === undefined ? '' : traceparentOf(span);
}

/** W3C traceparent of a span. */
export function traceparentOf(span: Span): string {
  const { traceId, spanId, traceFlags } = span.spanContext();
  if (traceId === '00000000000000000000000000000000') return '';
  return `00-${traceId}-${spanId}-0${traceFlags & TraceFlags.SAMPLED}`;
}

const traceparentForm = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?$/;

function parseTraceparent(traceparent: string): SpanContext | undefined {
  const parts = traceparentForm.exec(traceparent);
  if (parts === null) return undefined;
  const [, traceId = '', spanId = '', flags = ''] = parts;
  const remote = { traceId, spanId, traceFlags: Number.parseInt(flags, 16) & TraceFlags.SAMPLED, isRemote: true };
  return isSpanContextValid(remote) ? remote : undefined;
}

/**
 * A context that continues the caller's trace; an empty one, which starts a new trace, when the traceparent is empty or broken.
 * `sampling: 'ours'` is for the public edge: the trace id is kept, the caller's wish to be sampled is not. `'later'` waits for
 * `followSampling`: the wish counts once it is known whose it is.
 */
export function contextFromTraceparent(
  traceparent: string,
  options?: { sampling: 'theirs' | 'ours' | 'later' },
): Context {
  const remote = parseTraceparent(traceparent);
  if (remote === undefined) return ROOT_CONTEXT;
  // Drawn anew: a verdict by trace id would be the stranger's choice again.
  if (options?.sampling === 'ours')
    remote.traceFlags = recorder?.draws(newTraceId()) ? TraceFlags.SAMPLED : TraceFlags.NONE;
  if (options?.sampling === 'later') remote.traceFlags = TraceFlags.NONE;
  return apiTrace.setSpanContext(ROOT_CONTEXT, remote);
}

/** A link to the span that a stored traceparent names; undefined when it is empty or broken. */
export function linkFromTraceparent<Given extends SpanAttributes>(
  traceparent: string,
  attributes?: Given & Declared<Given>,
): Link | undefined {
  const remote = parseTraceparent(traceparent);
  return remote && { context: remote, ...(attributes && { attributes }) };
}

/** Says that the active span answered with a miss, or saw one in an answer, and keeps this trace. `cause` is the name of the cause. */
export function markMiss(cause: string): void {
  const span = trace.getActiveSpan();
  if (span === undefined) return;
  span.setAttribute(attr.miss, true);
  span.setAttribute(attr.missCause, cause);
  keep(span, 'miss');
}

/** Exports the local part of the active trace whatever the sampler said: for writes of sessions, devices and rosters. */
export function keepTrace(why: string): void {
  const span = trace.getActiveSpan();
  if (span !== undefined) keep(span, why);
}

/**
 * Forgets the spans of the active local part that have ended, unless it is kept: for a call that lasts, once what it began with went well.
 * They would wait for its end, and thousands of such calls leave no room for others. When it ends with an error, its own span is kept.
 */
export function forgetBeginning(): void {
  const part = localPartOf(trace.getActiveSpan());
  if (part !== undefined) recorder?.parts.forget(part);
}

/** Exports the local part of a span because whoever called had the trace sampled, and may be believed. */
export function followSampling(span: Span): void {
  const part = localPartOf(span);
  if (part !== undefined) recorder?.parts.keep(part);
}

/** Whether a traceparent has the sampled flag. */
export function isSampled(traceparent: string): boolean {
  return ((parseTraceparent(traceparent)?.traceFlags ?? 0) & TraceFlags.SAMPLED) !== 0;
}

/** A link to a trace of which only the id is known: it names no span that exists. Undefined when the id is none. */
export function linkToTrace<Given extends SpanAttributes>(
  traceId: string,
  attributes?: Given & Declared<Given>,
): Link | undefined {
  return linkFromTraceparent(`00-${traceId}-${traceId.slice(16)}-01`, attributes);
}

function keep(span: Span, why: string): void {
  if (!(span instanceof RecordedSpan)) return;
  // Said of a sampled trace too: a collector that thins those keeps it by this.
  if (span.attributes[attr.kept] === undefined) span.setAttribute(attr.kept, why);
  recorder?.parts.keep(span.part);
}
