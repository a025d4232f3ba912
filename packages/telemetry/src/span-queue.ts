import { context, ROOT_CONTEXT, TraceFlags } from '@opentelemetry/api';
import type { ReadableSpan, SpanExporter } from '@opentelemetry/sdk-trace';

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
 * Without an exporter every span is forgotten at once.
 */
export class SpanQueue {
  readonly #exporter: SpanExporter | undefined;
  readonly #capacity: number;
  readonly #batch: number;
  readonly #delayMs: number;
  #spans: ReadableSpan[] = [];
  #timer: NodeJS.Timeout | undefined;
  #sending: Promise<void> | undefined;
  #closed = false;
  exported = 0;
  /** Spans lost because the queue was full. */
  overflowed = 0;
  /** Spans lost because the receiver refused them or did not answer. */
  failed = 0;

  constructor(exporter: SpanExporter | undefined, options: SpanQueueOptions = {}) {
    this.#exporter = exporter;
    this.#capacity = options.capacity ?? 4_096;
    this.#batch = options.batch ?? 256;
    this.#delayMs = options.delayMs ?? 500;
  }

  get length(): number {
    return this.#spans.length;
  }

  add(span: ReadableSpan): void {
    if (this.#exporter === undefined || this.#closed) return;
    if (this.#spans.length >= this.#capacity) {
      this.overflowed += 1;
      return;
    }
    // Kept after the fact: what is exported says that it was.
    span.spanContext().traceFlags |= TraceFlags.SAMPLED;
    this.#spans.push(span);
    if (this.#spans.length >= this.#batch) this.#send();
    else this.#schedule();
  }

  /** Resolves when everything that was added before has been sent or given up. */
  async flush(): Promise<void> {
    while (this.#sending !== undefined || this.#spans.length > 0) {
      this.#send();
      await this.#sending;
    }
  }

  /** Sends what waits, then stops. */
  async close(): Promise<void> {
    await this.flush();
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#exporter?.shutdown();
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
    this.#sending = this.#export(batch).then((accepted) => {
      if (accepted) this.exported += batch.length;
      else this.failed += batch.length;
      this.#sending = undefined;
      if (this.#spans.length >= this.#batch) this.#send();
      else if (this.#spans.length > 0 && !this.#closed) this.#schedule();
    });
  }

  #export(batch: ReadableSpan[]): Promise<boolean> {
    const exporter = this.#exporter as SpanExporter;
    return new Promise((resolve) => {
      context.with(ROOT_CONTEXT, () => exporter.export(batch, (result) => resolve(result.code === 0)));
    });
  }
}
