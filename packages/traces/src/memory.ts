import type { TraceSpan } from './span.ts';

export interface TraceBounds {
  readonly traces: number;
  readonly bytes: number;
  readonly spansPerTrace: number;
}

export interface TraceSummary {
  readonly id: string;
  /** Name of the first root, '' while it has not arrived. */
  readonly name: string;
  readonly services: readonly string[];
  readonly spans: number;
  readonly startMs: number;
  readonly errors: number;
  /** The first cause of a miss that was seen, '' for none. */
  readonly missCause: string;
}

interface StoredTrace {
  readonly spans: Map<string, TraceSpan>;
  bytes: number;
}

/** The newest traces, within bounds; a trace is as new as its newest span. */
export class TraceMemory {
  readonly #bounds: TraceBounds;
  readonly #traces = new Map<string, StoredTrace>();
  #bytes = 0;

  constructor(bounds: TraceBounds) {
    this.#bounds = bounds;
  }

  /** Idempotent by span id. */
  add(span: TraceSpan): void {
    const trace = this.#traces.get(span.traceId) ?? { spans: new Map(), bytes: 0 };
    if (trace.spans.has(span.spanId) || trace.spans.size >= this.#bounds.spansPerTrace) return;
    const bytes = JSON.stringify(span).length;
    trace.spans.set(span.spanId, span);
    trace.bytes += bytes;
    this.#bytes += bytes;
    this.#traces.delete(span.traceId);
    this.#traces.set(span.traceId, trace);
    while (this.#traces.size > this.#bounds.traces || (this.#bytes > this.#bounds.bytes && this.#traces.size > 1))
      this.#dropOldest();
  }

  spans(traceId: string): TraceSpan[] {
    return [...(this.#traces.get(traceId)?.spans.values() ?? [])];
  }

  /** Newest first. */
  list(limit: number): TraceSummary[] {
    return [...this.#traces]
      .reverse()
      .slice(0, limit)
      .map(([id, { spans }]) => summarise(id, [...spans.values()]));
  }

  #dropOldest(): void {
    const [id, trace] = this.#traces.entries().next().value as [string, StoredTrace];
    this.#traces.delete(id);
    this.#bytes -= trace.bytes;
  }
}

function summarise(id: string, spans: readonly TraceSpan[]): TraceSummary {
  return {
    id,
    name: spans.find((span) => span.parentSpanId === '')?.name ?? '',
    services: [...new Set(spans.map((span) => span.service))].sort(),
    spans: spans.length,
    startMs: Math.min(...spans.map((span) => span.startMs)),
    errors: spans.filter((span) => span.status === 'error').length,
    missCause: String(
      spans.find((span) => span.attributes['keytrail.miss.cause'])?.attributes['keytrail.miss.cause'] ?? '',
    ),
  };
}
