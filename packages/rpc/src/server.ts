import type { DescService } from '@bufbuild/protobuf';
import type { Authenticator, ServiceName } from '@keytrail/auth';
import { attr, report, type Telemetry } from '@keytrail/telemetry';
import type { ServerConfig } from './config.ts';
import { createEndpoint, createRpcEndpoint, type Endpoint, type Gate, type ServerParts } from './endpoint.ts';
import { startGrpcServer } from './grpc-server.ts';
import { createCallerLimiter } from './limits.ts';
import { onPeerBuild, peerBuildsSeen } from './peer-builds.ts';
import { type Readiness, watchReadiness } from './readiness.ts';
import type { Rpc } from './rpc.ts';
import type { ServerCall } from './server-call.ts';
import { startWebServer } from './web-server.ts';

export interface ServerOptions {
  readonly service: ServiceName;
  readonly rpcs: readonly Rpc[];
  /** The services of the contract that are served; a method without an Rpc answers METHOD_UNKNOWN. */
  readonly services: readonly DescService[];
  readonly config: ServerConfig;
  readonly authenticator: Authenticator;
  readonly telemetry: Telemetry;
  /** Asked every second and at each /readyz; by default the server is ready once it listens. */
  readonly readiness?: () => Promise<Readiness>;
  /** While it has something in `closed`, calls are refused with that, but for methods that are answered `whileClosed`. */
  readonly gate?: Gate | undefined;
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
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const { config, services, telemetry } = options;
  const drain = new AbortController();
  const parts: ServerParts = {
    config,
    authenticator: options.authenticator,
    telemetry,
    limiter: createCallerLimiter('caller', {
      requestsPerSecond: config.callerRequestsPerSecond,
      burst: config.callerBurst,
      inFlight: config.callerInFlight,
    }),
    draining: drain.signal,
    gate: options.gate ?? open,
    open: new Set<ServerCall>(),
  };
  const endpoints = new Map<string, Endpoint>();
  for (const rpc of options.rpcs) {
    const endpoint = createRpcEndpoint(rpc, parts);
    if (endpoints.has(endpoint.name)) throw new Error(`${endpoint.name} is served twice`);
    if (!services.some(({ typeName }) => typeName === rpc.method.parent.typeName))
      throw new Error(`${endpoint.name} is of a service that is not served here`);
    endpoints.set(endpoint.name, endpoint);
  }
  const unknown = createEndpoint('_OTHER', undefined, parts);

  const grpc = await startGrpcServer({ config, services, endpoints, unknown });
  let serves = false;
  const stopReporting = report(['ready', 'peerBuilds'], (observe) => {
    observe('ready', serves ? 1 : 0);
    for (const { peer, build, otherContract } of peerBuildsSeen()) {
      const contracts = otherContract === undefined ? 'unknown' : otherContract ? 'other' : 'same';
      observe('peerBuilds', 1, { [attr.peer]: peer, build, contracts });
    }
  });
  const readiness = watchReadiness(options.readiness ?? (async () => ({ ready: true })), ({ ready, why }) => {
    serves = ready;
    grpc.health.set(ready);
    telemetry.log.info({ ready, why }, ready ? 'ready' : 'not ready');
  });
  const forgetPeers = onPeerBuild(({ peer, build, otherContract }) => {
    if (otherContract)
      telemetry.log.warn({ peer, peer_build: build }, 'a peer has other contracts: this is a mixed fleet');
    else if (build !== telemetry.build.writerBuild)
      telemetry.log.info({ peer, peer_build: build }, 'a peer runs another build');
  });
  const build = telemetry.build.writerBuild;
  const web = await startWebServer({ config, endpoints, unknown, build, readiness: readiness.check }).catch((error) => {
    readiness.stop();
    stopReporting();
    grpc.close();
    throw error;
  });
  await readiness.check();

  async function stopWithin(ms: number): Promise<void> {
    readiness.override(false);
    readiness.stop();
    drain.abort(new DOMException('draining', 'AbortError'));
    const drained = Promise.all([grpc.drain(), web.drain()]);
    const forced = setTimeout(() => {
      for (const call of parts.open) call.forceEnd();
      // The refusals are on their way; what does not take them now never will.
      setTimeout(() => {
        grpc.close();
        web.close();
      }, lastWordMs);
    }, ms);
    await drained;
    clearTimeout(forced);
    forgetPeers();
    stopReporting();
  }

  let stopped: Promise<void> | undefined;
  return {
    grpcPort: grpc.port,
    webPort: web.port,
    setReady: readiness.override,
    stop: () => {
      stopped ??= stopWithin(config.drainMs);
      return stopped;
    },
  };
}

const lastWordMs = 100;
const open: Gate = { closed: undefined };
