import type { Readable, Writable } from 'node:stream';

export interface DevtoolsEvent {
  readonly method: string;
  readonly params: Readonly<Record<string, unknown>>;
  readonly sessionId?: string;
}

type Result = Record<string, unknown>;

interface Waiting {
  readonly resolve: (result: Result) => void;
  readonly reject: (error: Error) => void;
}

/** The DevTools protocol over a pair of pipes: JSON, each message ended by a null byte. */
export class Devtools {
  readonly #to: Writable;
  readonly #waiting = new Map<number, Waiting>();
  readonly #listeners = new Set<(event: DevtoolsEvent) => void>();
  #lastId = 0;
  #rest = '';

  constructor(to: Writable, from: Readable) {
    this.#to = to;
    to.on('error', () => this.#end());
    from.setEncoding('utf8').on('data', (text: string) => this.#receive(text));
    from.once('close', () => this.#end());
  }

  /** Rejects with what the browser says, and when it is gone. */
  call(method: string, params: object = {}, sessionId?: string): Promise<Result> {
    this.#lastId += 1;
    const id = this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#to.write(`${JSON.stringify({ id, method, params, ...(sessionId && { sessionId }) })}\0`);
    });
  }

  listen(listener: (event: DevtoolsEvent) => void): void {
    this.#listeners.add(listener);
  }

  #receive(text: string): void {
    const messages = (this.#rest + text).split('\0');
    this.#rest = messages.pop() ?? '';
    for (const message of messages) {
      const { id, result, error, ...event } = JSON.parse(message) as DevtoolsEvent & {
        id?: number;
        result?: Result;
        error?: { message: string };
      };
      if (id === undefined) {
        for (const listener of this.#listeners) listener(event);
        continue;
      }
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error) waiting?.reject(new Error(error.message));
      else waiting?.resolve(result ?? {});
    }
  }

  #end(): void {
    for (const { reject } of this.#waiting.values()) reject(new Error('the browser is gone'));
    this.#waiting.clear();
  }
}
