import { context, ROOT_CONTEXT } from '@opentelemetry/api';
import type { RecordedSpan } from './recorded-span.ts';

/** Sends one batch; resolves to whether the receiver took it. Never rejects. */
export type SendSpans = (spans: readonly RecordedSpan[]) => Promise<boolean>;

/** When a receiver last took something, and when it last did not. */
export interface Deliveries {
  lastTakenAt?: Date;
  lastFailedAt?: Date;
}

export interface SpanQueueOptions {
  /** Spans that wait for export; further ones are lost, and counted. */
  readonly capacity?: number;
  /** Spans per request to the receiver. */
  readonly batch?: number;
  /** The longest that a span waits for its batch to fill, in ms. */
  readonly delayMs?: number;
}

/**
 * Sends spans in batches, one request at a time, so that a receiver that is away costs `capacity` spans of memory and no more.
 * Without a receiver every span is forgotten at once.
 */
export class SpanQueue {
  readonly #sendSpans: SendSpans | undefined;
  readonly #capacity: number;
  readonly #batch: number;
  readonly #delayMs: number;
  #spans: RecordedSpan[] = [];
  #timer: NodeJS.Timeout | undefined;
  #sending: Promise<boolean> | undefined;
  #closed = false;
  exported = 0;
  /** Spans lost because the queue was full. */
  overflowed = 0;
  /** Spans lost because the receiver refused them or did not answer. */
  failed = 0;
  readonly deliveries: Deliveries = {};

  constructor(sendSpans: SendSpans | undefined, options: SpanQueueOptions = {}) {
    this.#sendSpans = sendSpans;
    this.#capacity = options.capacity ?? 4_096;
    this.#batch = options.batch ?? 256;
    this.#delayMs = options.delayMs ?? 500;
  }

  get length(): number {
    return this.#spans.length;
  }

  add(span: RecordedSpan): void {
    if (this.#sendSpans === undefined || this.#closed) return;
    if (this.#spans.length >= this.#capacity) {
      this.overflowed += 1;
      return;
    }
    this.#spans.push(span);
    if (this.#spans.length >= this.#batch) this.#send();
    else this.#schedule();
  }

  /** Sends what waits now, up to the first batch that the receiver does not take. */
  async flush(): Promise<void> {
    let taken = (await this.#sending) ?? true;
    while (taken && this.#spans.length > 0) {
      this.#send();
      taken = (await this.#sending) ?? true;
    }
  }

  /** Flushes, gives up the rest, and takes no more. */
  async close(): Promise<void> {
    await this.flush();
    this.#closed = true;
    clearTimeout(this.#timer);
    this.failed += this.#spans.length;
    this.#spans = [];
  }

  #schedule(): void {
    if (this.#timer !== undefined || this.#sending !== undefined) return;
    // Started outside the request's context, which the timer would hold otherwise.
    this.#timer = context.with(ROOT_CONTEXT, () => setTimeout(() => this.#send(), this.#delayMs));
    this.#timer.unref();
  }

  #send(): void {
    if (this.#sending !== undefined || this.#spans.length === 0) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const batch = this.#spans.splice(0, this.#batch);
    const sendSpans = this.#sendSpans as SendSpans;
    this.#sending = context
      .with(ROOT_CONTEXT, () => sendSpans(batch))
      .then((accepted) => {
        if (accepted) this.exported += batch.length;
        else this.failed += batch.length;
        this.deliveries[accepted ? 'lastTakenAt' : 'lastFailedAt'] = new Date();
        this.#sending = undefined;
        if (this.#spans.length >= this.#batch) this.#send();
        else if (this.#spans.length > 0) this.#schedule();
        return accepted;
      });
  }
}
