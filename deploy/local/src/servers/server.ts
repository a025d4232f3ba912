import type { StopRecord } from '../supervision/stop-recorded.ts';

export type ServerKind = 'postgres' | 'redis' | 'nats';

/** Where a server came from; also the order in which the ways are tried. */
export const origins = ['environment', 'path', 'toolchain', 'docker'] as const;
export type Origin = (typeof origins)[number];

export interface ServerOptions {
  /** Only this way of getting a server. Default: `KEYTRAIL_<KIND>_FROM`, else every way in order. */
  readonly from?: Origin;
  /** Never the server of `KEYTRAIL_<KIND>_URL`: for tests that stop, freeze or kill it. Default false. */
  readonly own?: boolean;
  /** Runs on when this process ends, until its {@link ServerHandle.record} is stopped. Default false. */
  readonly detached?: boolean;
}

/** A running server that belongs to whoever asked for it, except when its origin is `environment`. */
export interface ServerHandle extends AsyncDisposable {
  readonly kind: ServerKind;
  /** For the client library of its kind; stays the same over restarts. */
  readonly url: string;
  readonly version: string;
  readonly origin: Origin;
  readonly port: number;
  /** Of the present run; missing for origins `environment` and `docker`. */
  readonly pid?: number;
  /** What stops it from another process; missing for origin `environment`. */
  readonly record?: StopRecord;
  /** Stops the server and removes its data. Idempotent. Does nothing to a server of the environment. */
  stop(): Promise<void>;
  /** Stops the server in an orderly way and keeps its data and port for `restart`. Missing for origin `environment`. */
  halt?(): Promise<void>;
  /**
   * Starts it again on the same port with the same data, whether it runs, was halted or was killed; with `empty` as one that lost its
   * disk (NATS only, and not in Docker). Missing for origin `environment`.
   */
  restart?(options?: { readonly empty?: boolean }): Promise<void>;
  /**
   * SIGKILL (all its processes at once, like a power cut; resolves when they are gone), SIGSTOP and SIGCONT (freezes and
   * thaws all of them), or any other signal. Throws for a server of the environment.
   */
  kill(signal: NodeJS.Signals): Promise<void>;
}

/** A way of getting a server that this machine does not offer; the next way is tried. */
export class NotAvailable extends Error {
  override readonly name = 'NotAvailable';
}

/** No way led to a server. */
export class ServerUnavailable extends Error {
  override readonly name = 'ServerUnavailable';
}
