import type { Context, Span, SpanContext, SpanOptions, Tracer, TracerProvider } from '@opentelemetry/api';
import { context, isSpanContextValid, SpanKind, TraceFlags, trace } from '@opentelemetry/api';
import { currentClock, epochMs } from './clock.ts';
import { newSpanId, newTraceId } from './ids.ts';
import type { LocalParts } from './local-parts.ts';
import { RecordedSpan } from './recorded-span.ts';

/**
 * A tracer that records every span. Whether a trace is sampled follows the caller's flag, or, at a root, the trace id and
 * the ratio, so that every process draws the same.
 */
export class Recorder implements Tracer, TracerProvider {
  readonly parts: LocalParts;
  readonly #below: number;

  constructor(parts: LocalParts, options: { ratio: number }) {
    this.parts = parts;
    this.#below = Math.round(options.ratio * 2 ** 32);
  }

  getTracer(): Tracer {
    return this;
  }

  startSpan(name: string, options: SpanOptions = {}, from: Context = context.active()): Span {
    const above = options.root === true ? undefined : trace.getSpan(from);
    const parent = above instanceof RecordedSpan ? above : continued(above?.spanContext());
    const traceId = parent === undefined ? newTraceId() : parent.traceId;
    const joins = parent instanceof RecordedSpan && !parent.part.closed;
    const part = joins ? parent.part : this.parts.open(currentClock(), this.#sampled(traceId, parent));
    const span = new RecordedSpan(
      this.parts,
      part,
      parent,
      name,
      options.kind ?? SpanKind.INTERNAL,
      traceId,
      newSpanId(),
      options.startTime === undefined ? part.clock.now() : epochMs(options.startTime),
      options.attributes,
      options.links,
    );
    if (!joins) part.root = span;
    return span;
  }

  startActiveSpan<F extends (span: Span) => unknown>(name: string, ...rest: unknown[]): ReturnType<F> {
    const work = rest.at(-1) as (span: Span) => ReturnType<F>;
    const options = rest.length > 1 ? (rest[0] as SpanOptions) : {};
    const from = rest.length > 2 ? (rest[1] as Context) : context.active();
    const span = this.startSpan(name, options, from);
    return context.with(trace.setSpan(from, span), work, undefined, span);
  }

  /** A drawing by the trace id's last 32 bits. */
  draws(traceId: string): boolean {
    return Number.parseInt(traceId.slice(24), 16) < this.#below;
  }

  #sampled(traceId: string, parent: SpanContext | undefined): boolean {
    return parent === undefined ? this.draws(traceId) : (parent.traceFlags & TraceFlags.SAMPLED) !== 0;
  }
}

function continued(remote: SpanContext | undefined): SpanContext | undefined {
  return remote !== undefined && isSpanContextValid(remote) ? remote : undefined;
}
