/**
 * Work that is done once however many want it. Each who joins brings a signal and may leave; the work is given up when
 * the last one has left.
 */
export class Flights<T> {
  readonly #flights = new Map<string, Flight<T>>();

  has(key: string): boolean {
    return this.#flights.has(key);
  }

  join(key: string, signal: AbortSignal | undefined, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    let flight = this.#flights.get(key);
    if (flight === undefined) {
      const control = new AbortController();
      const started = work(control.signal).finally(() => this.#forget(key, created));
      const created: Flight<T> = { control, passengers: 0, result: started };
      flight = created;
      // Whoever left does not hear how it ended.
      started.catch(() => {});
      this.#flights.set(key, created);
    }
    return this.#board(key, flight, signal);
  }

  async #board(key: string, flight: Flight<T>, signal: AbortSignal | undefined): Promise<T> {
    flight.passengers += 1;
    try {
      return await withSignal(flight.result, signal);
    } finally {
      flight.passengers -= 1;
      if (flight.passengers === 0) {
        this.#forget(key, flight);
        flight.control.abort();
      }
    }
  }

  #forget(key: string, flight: Flight<T>): void {
    if (this.#flights.get(key) === flight) this.#flights.delete(key);
  }
}

interface Flight<T> {
  readonly control: AbortController;
  readonly result: Promise<T>;
  passengers: number;
}

/** The promise, or the signal's reason if that comes first. */
export function withSignal<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const stop = () => reject(signal.reason);
    signal.addEventListener('abort', stop, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}

/** Runs work for one key at a time, in the order in which it came. */
export class Turns {
  readonly #last = new Map<string, Promise<unknown>>();

  take<T>(key: string, work: () => Promise<T>): Promise<T> {
    const before = this.#last.get(key) ?? Promise.resolve();
    const mine = before.then(work, work);
    this.#last.set(key, mine);
    const forget = () => {
      if (this.#last.get(key) === mine) this.#last.delete(key);
    };
    mine.then(forget, forget);
    return mine;
  }
}
