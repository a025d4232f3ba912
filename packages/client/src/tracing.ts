import type { Primitives } from '@keytrail/crypto';
import {
  type Context,
  context,
  INVALID_SPAN_CONTEXT,
  isSpanContextValid,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
  trace,
} from '@opentelemetry/api';
import { toHex } from './bytes.ts';
import { KeyMissError, tellTrace } from './errors.ts';
import type { OperationSpan, SpanAttributes } from './span-attributes.ts';

/** What an operation of the SDK carries along: its place in a trace, and when to stop. */
export interface Operation {
  readonly context: Context;
  readonly span: OperationSpan;
  readonly signal: AbortSignal;
}

export interface OperationSettings {
  /** The operation that this one is part of, or the context that it continues; else what is active. */
  readonly within?: Operation | Context | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly attributes?: SpanAttributes;
}

/**
 * Spans by `@opentelemetry/api` alone. The context is handed on explicitly, because browsers have no way to keep it over an `await`; and
 * where no SDK makes trace ids, ours do, so that what a client does is one trace on the servers in any case.
 */
export class Tracing {
  readonly #primitives: Primitives;

  constructor(primitives: Primitives) {
    this.#primitives = primitives;
  }

  async run<T>(name: string, settings: OperationSettings, work: (operation: Operation) => Promise<T>): Promise<T> {
    const { within, attributes } = settings;
    const parent = isOperation(within) ? within.context : (within ?? context.active());
    const span = trace
      .getTracer('keytrail')
      .startSpan(name, { kind: SpanKind.INTERNAL, ...(attributes && { attributes }) }, parent);
    const own = isSpanContextValid(span.spanContext())
      ? trace.setSpan(parent, span)
      : trace.setSpanContext(parent, this.#inventedSpan());
    const signal = settings.signal ?? (isOperation(within) ? within.signal : new AbortController().signal);
    try {
      return await context.with(own, () => work({ context: own, span, signal }));
    } catch (error) {
      tellError(span, error);
      tellTrace(error, trace.getSpanContext(own)?.traceId ?? '');
      throw error;
    } finally {
      span.end();
    }
  }

  /** Notes in its trace that a notification came; what it leads to hangs below that. The traceparent to go on with: '' of one that came with none. */
  received(kind: string, traceparent: string): string {
    const parent = contextOf(traceparent);
    if (parent === undefined) return traceparent;
    const attributes: SpanAttributes = {
      'messaging.system.name': 'keytrail',
      'messaging.operation.name': 'process',
      'messaging.operation.type': 'process',
      'keytrail.notification.kind': kind,
    };
    const span = trace
      .getTracer('keytrail')
      .startSpan('receive notification', { kind: SpanKind.CONSUMER, attributes }, parent);
    const own = traceparentOfContext(trace.setSpan(parent, span));
    span.end();
    return own ?? traceparent;
  }

  #inventedSpan() {
    return {
      traceId: toHex(this.#primitives.randomBytes(16)),
      spanId: toHex(this.#primitives.randomBytes(8)),
      traceFlags: TraceFlags.NONE,
    };
  }
}

/** An operation that is in no trace: what goes on for as long as a client lives. */
export function untraced(signal: AbortSignal): Operation {
  return { context: ROOT_CONTEXT, span: trace.wrapSpanContext(INVALID_SPAN_CONTEXT), signal };
}

function isOperation(within: Operation | Context | undefined): within is Operation {
  return within !== undefined && 'span' in within;
}

/** A miss is an answer, not a fault: it is told as the servers tell it. */
function tellError(span: OperationSpan & Pick<Span, 'setStatus'>, error: unknown): void {
  if (error instanceof KeyMissError) {
    span.setAttributes({
      'keytrail.miss': true,
      'keytrail.miss.cause': error.cause,
      'keytrail.recovery': error.recovery,
    });
    return;
  }
  const type = error instanceof Error ? error.name : typeof error;
  span.setAttribute('error.type', type);
  span.setStatus({ code: SpanStatusCode.ERROR, message: type });
}

/** W3C Trace Context of the operation's span. */
export function traceparentOf({ context: own }: Operation): string | undefined {
  return traceparentOfContext(own);
}

export function traceparentOfContext(own: Context): string | undefined {
  const spanContext = trace.getSpanContext(own);
  if (spanContext === undefined || !isSpanContextValid(spanContext)) return undefined;
  const { traceId, spanId, traceFlags } = spanContext;
  return `00-${traceId}-${spanId}-0${traceFlags & TraceFlags.SAMPLED}`;
}

export function traceIdOf({ context: own }: Operation): string {
  return trace.getSpanContext(own)?.traceId ?? '';
}

const traceparentForm = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?$/;

/** The context that a notification's traceparent names; undefined when it names none. */
export function contextOf(traceparent: string): Context | undefined {
  const parts = traceparentForm.exec(traceparent);
  if (parts === null) return undefined;
  const [, traceId = '', spanId = '', flags = ''] = parts;
  const traceFlags = Number.parseInt(flags, 16) & TraceFlags.SAMPLED;
  const remote = { traceId, spanId, traceFlags, isRemote: true };
  return isSpanContextValid(remote) ? trace.setSpanContext(ROOT_CONTEXT, remote) : undefined;
}
