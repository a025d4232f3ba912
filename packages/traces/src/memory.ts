import type { TraceSpan } from './span.ts';

export interface TraceBounds {
  readonly traces: number;
  /** Of all spans together, as JSON. */
  readonly bytes: number;
  readonly spansPerTrace: number;
  /** Of one span, as JSON. */
  readonly bytesPerSpan: number;
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

export interface StoredSpans {
  readonly spans: TraceSpan[];
  /** Spans of the trace that came and were beyond a bound. */
  readonly dropped: number;
}

interface StoredTrace {
  readonly spans: Map<string, TraceSpan>;
  bytes: number;
  dropped: number;
  /** Rises with each span that comes, over all traces. */
  touched: number;
}

/** Of each bound, what evidence may hold when ordinary traces need room too. */
const evidenceShare = 0.75;

/**
 * The newest traces, within bounds; a trace is as new as its newest span. Ordinary ones go first: traces of misses, and those they point to (the last
 * write), stay until they fill their share.
 */
export class TraceMemory {
  readonly #bounds: TraceBounds;
  readonly #ordinary = new Map<string, StoredTrace>();
  readonly #evidence = new Map<string, StoredTrace>();
  /** Traces that a miss points to, also while they are not here; as many as there may be traces. */
  readonly #pointedTo = new Set<string>();
  #bytes = 0;
  #evidenceBytes = 0;
  #spansSeen = 0;

  constructor(bounds: TraceBounds) {
    this.#bounds = bounds;
  }

  get traces(): number {
    return this.#ordinary.size + this.#evidence.size;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Idempotent by span id. */
  add(span: TraceSpan): void {
    const trace = this.#find(span.traceId) ?? { spans: new Map(), bytes: 0, dropped: 0, touched: 0 };
    if (trace.spans.has(span.spanId)) return;
    const bytes = Buffer.byteLength(JSON.stringify(span));
    const { spansPerTrace, bytesPerSpan, bytes: bytesAtMost } = this.#bounds;
    if (trace.spans.size >= spansPerTrace || bytes > bytesPerSpan || trace.bytes + bytes > bytesAtMost) {
      // What there is of it remains; a trace of nothing but spans that are too long is none.
      trace.dropped += 1;
      return;
    }
    const wasEvidence = this.#evidence.has(span.traceId);
    trace.spans.set(span.spanId, span);
    trace.bytes += bytes;
    this.#spansSeen += 1;
    trace.touched = this.#spansSeen;
    this.#bytes += bytes;
    this.#ordinary.delete(span.traceId);
    this.#evidence.delete(span.traceId);
    if (wasEvidence) this.#evidenceBytes += bytes;
    if (wasEvidence || isMiss(span) || this.#pointedTo.has(span.traceId)) {
      if (!wasEvidence) this.#evidenceBytes += trace.bytes;
      this.#evidence.set(span.traceId, trace);
    } else this.#ordinary.set(span.traceId, trace);
    if (isMiss(span)) for (const link of span.links) this.#pointTo(link.traceId);
    this.#makeRoom();
  }

  read(traceId: string): StoredSpans {
    const trace = this.#find(traceId);
    return { spans: [...(trace?.spans.values() ?? [])], dropped: trace?.dropped ?? 0 };
  }

  /** Newest first: traces by their newest span, misses by when the key was first missed, whatever came of it later. */
  list({ limit, misses = false }: { readonly limit: number; readonly misses?: boolean }): TraceSummary[] {
    return [...this.#ordinary, ...this.#evidence]
      .map(([id, { spans, touched }]) => ({ id, touched, spans: [...spans.values()] }))
      .map((trace) => ({ ...trace, missedAt: misses ? firstMissMs(trace.spans) : 0 }))
      .filter(({ missedAt }) => missedAt !== undefined)
      .sort((a, b) => (b.missedAt ?? 0) - (a.missedAt ?? 0) || b.touched - a.touched)
      .slice(0, limit)
      .map(({ id, spans }) => summarise(id, spans));
  }

  #find(traceId: string): StoredTrace | undefined {
    return this.#ordinary.get(traceId) ?? this.#evidence.get(traceId);
  }

  #pointTo(traceId: string): void {
    this.#pointedTo.delete(traceId);
    this.#pointedTo.add(traceId);
    if (this.#pointedTo.size > this.#bounds.traces) this.#pointedTo.delete(first(this.#pointedTo));
    const trace = this.#ordinary.get(traceId);
    if (trace === undefined) return;
    this.#ordinary.delete(traceId);
    this.#evidence.set(traceId, trace);
    this.#evidenceBytes += trace.bytes;
  }

  #makeRoom(): void {
    const { traces, bytes } = this.#bounds;
    while (this.traces > traces || this.#bytes > bytes) {
      const crowded = this.#evidence.size > traces * evidenceShare || this.#evidenceBytes > bytes * evidenceShare;
      const from = this.#ordinary.size === 0 || (crowded && this.#evidence.size > 1) ? this.#evidence : this.#ordinary;
      const id = first(from.keys());
      const dropped = from.get(id)?.bytes ?? 0;
      from.delete(id);
      this.#bytes -= dropped;
      if (from === this.#evidence) this.#evidenceBytes -= dropped;
    }
  }
}

function first(ids: Iterable<string>): string {
  for (const id of ids) return id;
  throw new Error('there is none');
}

function isMiss({ attributes }: TraceSpan): boolean {
  return attributes['keytrail.miss'] === true || attributes['keytrail.miss.cause'] !== undefined;
}

/** Undefined without a miss. */
function firstMissMs(spans: readonly TraceSpan[]): number | undefined {
  const missed = spans.filter(isMiss).map((span) => span.startMs);
  return missed.length > 0 ? Math.min(...missed) : undefined;
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
