export interface LaneOptions<T> {
  /** So many lanes are worked on at the same time, one batch of each. */
  readonly atOnce: number;
  /** Items of a batch at most. */
  readonly batchOf: number;
  /** Of one lane, these go first. */
  readonly isUrgent: (item: T) => boolean;
  /** Works on items of one lane. */
  readonly work: (items: readonly T[]) => Promise<void>;
}

interface Waiting<T> {
  readonly item: T;
  readonly done: PromiseWithResolvers<void>;
}

/**
 * Work for many, each in a lane of its own. Lanes take turns batch by batch, so that one who wants much does not keep the others waiting; what
 * comes while a lane is being worked on goes into its next batch.
 */
export class Lanes<T> {
  readonly #options: LaneOptions<T>;
  /** In the order of their turns. */
  readonly #lanes = new Map<string, Waiting<T>[]>();
  readonly #busy = new Set<string>();
  #starting = false;

  constructor(options: LaneOptions<T>) {
    this.#options = options;
  }

  /** Resolves when the item was worked on. When a batch fails, whoever brought its first item hears why. */
  add(lane: string, item: T): Promise<void> {
    const waiting = { item, done: Promise.withResolvers<void>() };
    const items = this.#lanes.get(lane);
    if (items === undefined) this.#lanes.set(lane, [waiting]);
    else items.push(waiting);
    this.#start();
    return waiting.done.promise;
  }

  /** A moment later, so that what is added together is worked on together. */
  #start(): void {
    if (this.#starting) return;
    this.#starting = true;
    queueMicrotask(() => {
      this.#starting = false;
      for (const lane of [...this.#lanes.keys()]) {
        if (this.#busy.size >= this.#options.atOnce) return;
        if (!this.#busy.has(lane)) void this.#turn(lane);
      }
    });
  }

  async #turn(lane: string): Promise<void> {
    const { batchOf, isUrgent, work } = this.#options;
    const all = this.#lanes.get(lane) ?? [];
    const inOrder = [...all.filter(({ item }) => isUrgent(item)), ...all.filter(({ item }) => !isUrgent(item))];
    const batch = inOrder.slice(0, batchOf);
    const rest = inOrder.slice(batchOf);
    this.#lanes.delete(lane);
    // To the end of the turns.
    if (rest.length > 0) this.#lanes.set(lane, rest);
    this.#busy.add(lane);
    let failure: { error: unknown } | undefined;
    try {
      await work(batch.map(({ item }) => item));
    } catch (error) {
      failure = { error };
    }
    this.#busy.delete(lane);
    for (const [i, { done }] of batch.entries()) {
      if (failure !== undefined && i === 0) done.reject(failure.error);
      else done.resolve();
    }
    this.#start();
  }
}

/** Runs work for each item, so many at the same time, in their order. The first failure is thrown when all are through. */
export async function eachOf<T>(items: readonly T[], atOnce: number, work: (item: T) => Promise<void>): Promise<void> {
  const queue = items[Symbol.iterator]();
  const failures: unknown[] = [];
  const worker = async () => {
    for (const item of queue) await work(item).catch((error: unknown) => failures.push(error));
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, items.length) }, worker));
  if (failures.length > 0) throw failures[0];
}
