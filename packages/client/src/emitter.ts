/** Handlers by event name. A handler that throws is told to `onFault` and disturbs nobody else. */
export class Emitter<Events> {
  readonly #handlers = new Map<keyof Events, Set<(event: never) => void>>();
  readonly #onFault: (error: unknown, name: keyof Events) => void;

  constructor(onFault: (error: unknown, name: keyof Events) => void) {
    this.#onFault = onFault;
  }

  on<Name extends keyof Events>(name: Name, handler: (event: Events[Name]) => void): () => void {
    const handlers = this.#handlers.get(name) ?? new Set();
    this.#handlers.set(name, handlers);
    handlers.add(handler);
    return () => handlers.delete(handler);
  }

  emit<Name extends keyof Events>(name: Name, event: Events[Name]): void {
    for (const handler of this.#handlers.get(name) ?? []) {
      try {
        (handler as (event: Events[Name]) => void)(event);
      } catch (error) {
        this.#onFault(error, name);
      }
    }
  }
}
