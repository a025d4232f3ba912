import type { DescService } from '@bufbuild/protobuf';
import type { Authenticator, ServiceName } from '@keytrail/auth';
import type { Telemetry } from '@keytrail/telemetry';
import type { ServerConfig } from './config.ts';
import type { Rpc } from './rpc.ts';

export interface Readiness {
  readonly ready: boolean;
  /** Shown by /readyz and logged when it changes. */
  readonly why?: string;
}

export interface ServerOptions {
  readonly service: ServiceName;
  readonly rpcs: readonly Rpc[];
  /** The services of the contract that are served; a method without an Rpc answers METHOD_UNKNOWN. */
  readonly services: readonly DescService[];
  readonly config: ServerConfig;
  readonly authenticator: Authenticator;
  readonly telemetry: Telemetry;
  readonly readiness?: () => Promise<Readiness>;
}

export interface RunningServer {
  readonly grpcPort: number;
  readonly webPort: number;
  /** Overrides readiness: false keeps the server from being ready whatever `readiness` says. */
  setReady(on: boolean): void;
  /** Readiness off, streams asked to end, calls drained within `drainMs`, then closed. Idempotent. */
  stop(): Promise<void>;
}

/** Serves the methods on two ports, gRPC and web, with one chain around each handler. */
export async function startServer(_options: ServerOptions): Promise<RunningServer> {
  throw new Error('not served yet');
}
