/** Work that goes on under a fault, by several at once. What was acknowledged is kept, to be held against what is stored. */
export interface Load<T> {
  /** Of each worker, what was acknowledged to it, in this order. */
  readonly acknowledged: readonly (readonly T[])[];
  /** Calls that failed: whether they had effect is not known. */
  readonly failures: readonly unknown[];
  /** Resolves once each worker has had so many more acknowledged, from now on. */
  advances(by: number): Promise<void>;
  /** Resolves once so many more calls have failed, from now on. */
  fails(times: number): Promise<void>;
  /** Resolves when the calls at hand are over. */
  stop(): Promise<void>;
}

/** Starts the workers: each calls `work` with its number and that of the call, again and again, until it is stopped. */
export function startLoad<T>(workers: number, work: (worker: number, call: number) => Promise<T>): Load<T> {
  const acknowledged: T[][] = Array.from({ length: workers }, () => []);
  const failures: unknown[] = [];
  const waiting = new Set<() => void>();
  let stopping = false;

  function happened(): void {
    for (const look of waiting) look();
  }

  function when(reached: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const look = () => {
        if (!reached()) return;
        waiting.delete(look);
        resolve();
      };
      waiting.add(look);
      look();
    });
  }

  const running = acknowledged.map(async (mine, worker) => {
    for (let call = 0; !stopping; call += 1) {
      try {
        mine.push(await work(worker, call));
      } catch (error) {
        failures.push(error);
      }
      happened();
    }
  });
  return {
    acknowledged,
    failures,
    advances(by) {
      const goals = acknowledged.map((mine) => mine.length + by);
      return when(() => acknowledged.every((mine, worker) => mine.length >= (goals[worker] ?? 0)));
    },
    fails(times) {
      const goal = failures.length + times;
      return when(() => failures.length >= goal);
    },
    async stop() {
      stopping = true;
      await Promise.all(running);
    },
  };
}
