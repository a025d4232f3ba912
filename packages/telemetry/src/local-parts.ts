import { SpanKind, SpanStatusCode } from '@opentelemetry/api';
import { attr } from './attributes.ts';
import type { Clock } from './clock.ts';
import { RecordedSpan } from './recorded-span.ts';
import type { SpanQueue } from './span-queue.ts';
import type { Span } from './typed-spans.ts';

/**
 * The part of a trace that runs under one root in this process. Whether it is exported is known when its root ends,
 * or sooner; until then its ended spans wait here.
 */
export interface LocalPart {
  readonly clock: Clock;
  root: RecordedSpan | undefined;
  /** True from the moment on at which it is certain that this part is exported. */
  exported: boolean;
  closed: boolean;
  waiting: RecordedSpan[];
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
const empty: RecordedSpan[] = [];

/** The local part that a span belongs to; undefined for remote and no-op spans. */
export function localPartOf(span: Span | undefined): LocalPart | undefined {
  return span instanceof RecordedSpan ? span.part : undefined;
}

/** Buffers the spans of each local part until its root ends, then hands them to the queue or forgets them. */
export class LocalParts {
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

  /** Ended spans that wait for their root. */
  get waiting(): number {
    return this.#waiting;
  }

  open(clock: Clock, exported: boolean): LocalPart {
    return { clock, root: undefined, exported, closed: false, waiting: empty };
  }

  ended(span: RecordedSpan): void {
    const { part } = span;
    const isRoot = part.root === span;
    if (!part.exported && this.#mustBeSeen(span, isRoot)) this.keep(part);
    if (part.exported) this.#queue.add(span);
    else if (isRoot) this.unsampled += 1 + this.#release(part).length;
    else if (part.closed) this.unsampled += 1;
    else this.#wait(part, span);
    if (isRoot) {
      part.closed = true;
      part.root = undefined;
    }
  }

  /** Exports this part, whatever the ratio said: what waits now, and what ends later. */
  keep(part: LocalPart): void {
    if (part.exported) return;
    part.exported = true;
    for (const span of this.#release(part)) this.#queue.add(span);
  }

  /** Forgets what waits of this part now; what ends later waits again. */
  forget(part: LocalPart): void {
    this.unsampled += this.#release(part).length;
  }

  forgetAll(): void {
    for (const part of this.#undecided) this.#release(part);
  }

  #mustBeSeen(span: RecordedSpan, isRoot: boolean): boolean {
    // Whoever knows the API alone, as the SDK of devices, says so by the attribute.
    if (span.attributes[attr.miss] === true) return true;
    if (!isRoot && span.kind !== SpanKind.SERVER && span.kind !== SpanKind.CONSUMER) return false;
    if (span.status.code === SpanStatusCode.ERROR) return true;
    return isRoot && span.endMs - span.startMs >= this.#slowMs && span.attributes[attr.longLived] !== true;
  }

  #wait(part: LocalPart, span: RecordedSpan): void {
    const { spansPerPart, parts, spans } = this.#bounds;
    if (part.waiting.length === 0) {
      part.waiting = [];
      this.#undecided.add(part);
    } else if (part.waiting.length >= spansPerPart) {
      // What ended first has no child among what ended later: the rest is still a tree.
      const lost = part.waiting.splice(0, Math.ceil(spansPerPart / 2)).length;
      this.#waiting -= lost;
      this.overflowed += lost;
    }
    part.waiting.push(span);
    this.#waiting += 1;
    while (this.#waiting > spans || this.#undecided.size > parts) {
      const oldest = this.#undecided.values().next().value as LocalPart;
      this.overflowed += this.#release(oldest).length;
    }
  }

  #release(part: LocalPart): RecordedSpan[] {
    const released = part.waiting;
    if (released.length === 0) return released;
    part.waiting = empty;
    this.#waiting -= released.length;
    this.#undecided.delete(part);
    return released;
  }
}
