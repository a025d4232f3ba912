/** Work by name, of which one run is made at a time. Whoever wants it meanwhile shares one more run: what is new then is seen by it. */
export class Reruns {
  readonly #running = new Map<string, { again: boolean; done: Promise<void> }>();

  run(name: string, work: () => Promise<void>): Promise<void> {
    const running = this.#running.get(name);
    if (running !== undefined) {
      running.again = true;
      return running.done;
    }
    const started = { again: false, done: Promise.resolve() };
    this.#running.set(name, started);
    started.done = this.#runAll(name, started, work);
    return started.done;
  }

  async #runAll(name: string, started: { again: boolean }, work: () => Promise<void>): Promise<void> {
    try {
      do {
        started.again = false;
        await work();
      } while (started.again);
    } finally {
      this.#running.delete(name);
    }
  }
}
