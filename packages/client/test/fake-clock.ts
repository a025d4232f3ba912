import type { Clock } from '../src/index.ts';

interface Timer {
  readonly at: number;
  readonly background: boolean;
  readonly run: () => void;
}

/** Time that stands still until a test moves it. */
export class FakeClock implements Clock {
  readonly waits: number[] = [];
  #now = Date.parse('2026-01-01T00:00:00Z');
  #timers = new Set<Timer>();
  #scheduled = Promise.withResolvers<void>();

  /** How much has still to happen. */
  get pending(): number {
    return this.#timers.size;
  }

  now(): Date {
    return new Date(this.#now);
  }

  after(ms: number, run: () => void, options?: { background?: boolean }): () => void {
    const timer = { at: this.#now + ms, background: options?.background === true, run };
    this.#timers.add(timer);
    if (!timer.background) {
      this.waits.push(ms);
      this.#scheduled.resolve();
      this.#scheduled = Promise.withResolvers();
    }
    return () => this.#timers.delete(timer);
  }

  /** Waits until something waits in the foreground. */
  async untilSomebodyWaits(): Promise<void> {
    while (![...this.#timers].some(({ background }) => !background)) await this.#scheduled.promise;
  }

  advance(ms: number): void {
    this.#now += ms;
    for (const timer of [...this.#timers].sort((a, b) => a.at - b.at)) {
      if (timer.at <= this.#now && this.#timers.delete(timer)) timer.run();
    }
  }
}
