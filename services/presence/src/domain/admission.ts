/** Longest time that somebody is told to stay away. */
const longestWaitMs = 30_000;
/** For whoever comes while as many are being attached as may be. */
const shortestWaitMs = 200;

/** What an attaching device is told: come in, or come again. */
export type Admitted = { readonly admitted: true } | { readonly admitted: false; readonly retryAfterMs: number };

/**
 * Who may attach now: so many per second (and as many at once after a quiet second), and so many between their call and their greeting. A
 * crowd that comes back is told times to come again that are as far apart as the rate says. A bound of 0 is none. Times are of one
 * monotonic clock.
 */
export class Admission {
  readonly #perSecond: number;
  readonly #atOnce: number;
  #tokens: number;
  #filledAtMs = 0;
  #inside = 0;
  #nextTurnMs = 0;

  constructor(bounds: { readonly perSecond: number; readonly atOnce: number }) {
    this.#perSecond = bounds.perSecond;
    this.#atOnce = bounds.atOnce;
    this.#tokens = bounds.perSecond;
  }

  /** Whoever is admitted must `leave` once it is greeted, or has failed. */
  enter(nowMs: number): Admitted {
    const full = this.#atOnce > 0 && this.#inside >= this.#atOnce;
    if (this.#perSecond > 0) {
      const filled = ((nowMs - this.#filledAtMs) * this.#perSecond) / 1000;
      this.#tokens = Math.min(this.#perSecond, this.#tokens + filled);
      this.#filledAtMs = nowMs;
      if (full || this.#tokens < 1) return { admitted: false, retryAfterMs: this.#turn(nowMs) };
      this.#tokens -= 1;
    } else if (full) return { admitted: false, retryAfterMs: shortestWaitMs };
    this.#inside += 1;
    return { admitted: true };
  }

  leave(): void {
    this.#inside -= 1;
  }

  #turn(nowMs: number): number {
    this.#nextTurnMs = Math.max(this.#nextTurnMs, nowMs + shortestWaitMs) + 1000 / this.#perSecond;
    // A crowd that fills all turns goes round once more: told the longest wait, all the rest would come back at one moment.
    if (this.#nextTurnMs > nowMs + longestWaitMs) this.#nextTurnMs = nowMs + shortestWaitMs;
    return Math.ceil(this.#nextTurnMs - nowMs);
  }
}

/** From the begin of draining to when the first device comes back. */
const firstReturnMs = 500;

/** When each of a draining gateway's devices is to attach elsewhere: as far apart as attaches per second are admitted, the last after half a minute at most. */
export function spreadReturns(perSecond: number): () => number {
  let told = 0;
  return () => {
    const afterMs = perSecond > 0 ? (told * 1000) / perSecond : 0;
    told += 1;
    return Math.min(Math.round(firstReturnMs + afterMs), longestWaitMs);
  };
}
