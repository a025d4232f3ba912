import { appendFile, mkdir, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { TraceSpan } from './span.ts';

/** Appends spans to `spans.jsonl` in a folder, one per line; at `maxBytes` the file becomes `spans.1.jsonl`, replacing the former one. */
export class TraceJournal {
  readonly #folder: string;
  readonly #maxBytes: number;
  #written: Promise<void>;
  #bytes = 0;

  constructor(folder: string, maxBytes = 64 * 2 ** 20) {
    this.#folder = folder;
    this.#maxBytes = maxBytes;
    this.#written = this.#open();
  }

  get #file(): string {
    return join(this.#folder, 'spans.jsonl');
  }

  /** Resolves when the spans are in the file. */
  append(spans: readonly TraceSpan[]): Promise<void> {
    const lines = spans.map((span) => `${JSON.stringify(span)}\n`).join('');
    const write = this.#written.then(() => this.#write(lines));
    this.#written = write.catch(() => {});
    return write;
  }

  async #open(): Promise<void> {
    await mkdir(this.#folder, { recursive: true });
    this.#bytes = (await stat(this.#file).catch(() => undefined))?.size ?? 0;
  }

  async #write(lines: string): Promise<void> {
    if (this.#bytes > this.#maxBytes) {
      await rename(this.#file, join(this.#folder, 'spans.1.jsonl'));
      this.#bytes = 0;
    }
    await appendFile(this.#file, lines);
    this.#bytes += Buffer.byteLength(lines);
  }
}
