import type { ConnectionOptions, Connections, Environment } from './connection.ts';

/** Where the process's ends are: tests and main give them. */
export interface Terminal {
  readonly environment: Environment;
  out(text: string): void;
  say(text: string): void;
  /** Of stdout; undefined when it is no terminal. */
  readonly columns?: number | undefined;
}

/** Where a command writes, one line or more at a time: data goes to `out`, words to `say`. */
export interface Output {
  readonly json: boolean;
  out(text: string): void;
  say(text: string): void;
}

/** What a command gets to work with. */
export interface Session {
  readonly connections: Connections;
  readonly options: ConnectionOptions;
  readonly environment: Environment;
  readonly output: Output;
  /** Of stdout; undefined when it is no terminal. */
  readonly columns: number | undefined;
}

/** Runs the work of a command, then closes its connections. A number that it returns is the exit code. */
export type RunCommand = (work: (session: Session) => Promise<number> | Promise<void>) => Promise<void>;
