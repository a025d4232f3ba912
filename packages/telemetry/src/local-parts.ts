import type { Context, Span } from '@opentelemetry/api';
import { SpanKind, SpanStatusCode, TraceFlags, trace } from '@opentelemetry/api';
import type { ReadableSpan, Span as RecordingSpan, SpanProcessor } from '@opentelemetry/sdk-trace';
import { attr } from './attributes.ts';
import type { SpanQueue } from './span-queue.ts';

/**
 * The part of a trace that runs under one root in this process. Whether it is exported is known when its root ends,
 * or sooner; until then its ended spans wait here.
 */
export interface LocalPart {
  readonly root: Span;
  /** True from the moment on at which it is certain that this part is exported. */
  exported: boolean;
  closed: boolean;
  waiting: ReadableSpan[];
}

export interface LocalPartBounds {
  /** Ended spans that wait in one part; beyond it the oldest half goes. */
  readonly spansPerPart: number;
  /** Parts with waiting spans; beyond it the oldest part's spans go. */
  readonly parts: number;
  /** Ended spans that wait in all parts together. */
  readonly spans: number;
}

const defaultBounds: LocalPartBounds = { spansPerPart: 512, parts: 10_000, spans: 20_000 };

const partOf = Symbol('keytrail.local-part');

interface Member {
  [partOf]?: LocalPart;
}

/** The local part that a span belongs to; undefined for remote and no-op spans. */
export function localPartOf(span: Span | undefined): LocalPart | undefined {
  return (span as Member | undefined)?.[partOf];
}

/** Buffers the spans of each local part until its root ends, then hands them to the queue or forgets them. */
export class LocalParts implements SpanProcessor {
  readonly #queue: SpanQueue;
  readonly #slowMs: number;
  readonly #bounds: LocalPartBounds;
  readonly #undecided = new Set<LocalPart>();
  #waiting = 0;
  /** Spans of parts that nobody needed. */
  unsampled = 0;
  /** Spans lost because a bound was reached. */
  overflowed = 0;

  constructor(queue: SpanQueue, options: { slowMs: number; bounds?: Partial<LocalPartBounds> }) {
    this.#queue = queue;
    this.#slowMs = options.slowMs;
    this.#bounds = { ...defaultBounds, ...options.bounds };
  }

  get waiting(): number {
    return this.#waiting;
  }

  onStart(span: RecordingSpan, parentContext: Context): void {
    const above = localPartOf(trace.getSpan(parentContext));
    (span as Member)[partOf] =
      above !== undefined && !above.closed
        ? above
        : {
            root: span,
            exported: (span.spanContext().traceFlags & TraceFlags.SAMPLED) !== 0,
            closed: false,
            waiting: [],
          };
  }

  onEnd(span: ReadableSpan): void {
    const part = (span as Member)[partOf];
    if (part === undefined) return;
    const isRoot = (part.root as unknown) === span;
    if (!part.exported && this.#mustBeSeen(span, isRoot)) this.keep(part);
    if (part.exported) this.#queue.add(span);
    else if (isRoot) this.#forget(part);
    else if (part.closed) this.unsampled += 1;
    else this.#wait(part, span);
    if (isRoot) part.closed = true;
  }

  /** Exports this part, whatever the sampler said: what waits now, and what ends later. */
  keep(part: LocalPart): void {
    if (part.exported) return;
    part.exported = true;
    for (const span of this.#release(part)) this.#queue.add(span);
  }

  forceFlush(): Promise<void> {
    return this.#queue.flush();
  }

  async shutdown(): Promise<void> {
    for (const part of this.#undecided) this.#release(part);
    await this.#queue.close();
  }

  #mustBeSeen(span: ReadableSpan, isRoot: boolean): boolean {
    const answers = isRoot || span.kind === SpanKind.SERVER || span.kind === SpanKind.CONSUMER;
    if (!answers) return false;
    if (span.status.code === SpanStatusCode.ERROR) return true;
    return isRoot && milliseconds(span.duration) >= this.#slowMs && span.attributes[attr.longLived] !== true;
  }

  #wait(part: LocalPart, span: ReadableSpan): void {
    const { spansPerPart, parts, spans } = this.#bounds;
    if (part.waiting.length >= spansPerPart) {
      // The oldest ended first, so no later span has one of them as its parent: what stays is still a tree.
      const lost = part.waiting.splice(0, Math.ceil(spansPerPart / 2)).length;
      this.#waiting -= lost;
      this.overflowed += lost;
    }
    part.waiting.push(span);
    this.#waiting += 1;
    if (part.waiting.length === 1) this.#undecided.add(part);
    while (this.#waiting > spans || this.#undecided.size > parts) {
      const oldest = this.#undecided.values().next().value as LocalPart;
      this.overflowed += this.#release(oldest).length;
    }
  }

  #forget(part: LocalPart): void {
    this.unsampled += 1 + this.#release(part).length;
  }

  #release(part: LocalPart): ReadableSpan[] {
    const released = part.waiting;
    if (released.length === 0) return released;
    part.waiting = [];
    this.#waiting -= released.length;
    this.#undecided.delete(part);
    return released;
  }
}

function milliseconds([seconds, nanoseconds]: readonly [number, number]): number {
  return seconds * 1_000 + nanoseconds / 1_000_000;
}
