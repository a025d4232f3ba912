/** Who waits for the key of a session, and what wakes them: a notification, an attachment, or their own time. */
export class Hints {
  readonly #watches = new Map<string, Set<Watch>>();

  watch(key: string): Watch {
    const watches = this.#watches.get(key) ?? new Set();
    this.#watches.set(key, watches);
    const watch = new Watch(() => {
      watches.delete(watch);
      if (watches.size === 0 && this.#watches.get(key) === watches) this.#watches.delete(key);
    });
    watches.add(watch);
    return watch;
  }

  /** False when nobody waits for this. */
  wake(key: string): boolean {
    const watches = this.#watches.get(key);
    for (const watch of watches ?? []) watch.wake();
    return watches !== undefined;
  }

  wakeAll(): void {
    for (const key of this.#watches.keys()) this.wake(key);
  }
}

export class Watch {
  readonly stop: () => void;
  #woken = false;
  #resolve: (() => void) | undefined;

  constructor(stop: () => void) {
    this.stop = stop;
  }

  wake(): void {
    const resolve = this.#resolve;
    this.#resolve = undefined;
    if (resolve) resolve();
    else this.#woken = true;
  }

  /** Resolves when woken, also by what came since the last time. */
  next(): Promise<void> {
    if (this.#woken) {
      this.#woken = false;
      return Promise.resolve();
    }
    return new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  /** Nobody listens to `next` any more: what comes now is for the one after. */
  forget(): void {
    this.#resolve = undefined;
  }
}
