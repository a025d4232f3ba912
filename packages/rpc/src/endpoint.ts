import { create } from '@bufbuild/protobuf';
import type { Authenticator, Caller, Wire } from '@keytrail/auth';
import { attr, type SpanAttributes, SpanKind, type Telemetry } from '@keytrail/telemetry';
import { type CallMeasure, createCallMeasure } from './call-metrics.ts';
import type { ServerConfig } from './config.ts';
import { type CallerLimiter, createCallerLimiter } from './limits.ts';
import { type Allow, methodName, type Rpc } from './rpc.ts';
import type { ServerCall } from './server-call.ts';
import { compileRules } from './validation.ts';

/** What all methods of a server have in common. */
export interface ServerParts {
  readonly config: ServerConfig;
  readonly authenticator: Authenticator;
  readonly telemetry: Telemetry;
  readonly limiter: CallerLimiter;
  /** Aborts when the server begins to stop. */
  readonly draining: AbortSignal;
  /** Calls that have not been answered. */
  readonly open: Set<ServerCall>;
  readonly gate: Gate;
}

/** Why calls are not answered now; undefined while they are. */
export interface Gate {
  readonly closed: Error | undefined;
}

/** A method as a server serves it, on either wire. */
export interface Endpoint {
  /** `package.Service/Method`, or `_OTHER` for all that are unknown. */
  readonly name: string;
  /** Undefined when nobody serves the method: METHOD_UNKNOWN. */
  readonly rpc: Rpc | undefined;
  readonly parts: ServerParts;
  readonly limiter: CallerLimiter | undefined;
  readonly maxRequestBytes: number;
  readonly maxAnswerBytes: number;
  readonly span: Readonly<Record<Wire, { readonly kind: SpanKind; readonly attributes: SpanAttributes }>>;
  readonly measure: Readonly<Record<Wire, CallMeasure>>;
  allows(caller: Caller): boolean;
}

export function createEndpoint(name: string, rpc: Rpc | undefined, parts: ServerParts): Endpoint {
  if (rpc !== undefined) compileRules(rpc.method.input, create(rpc.method.input));
  return {
    name,
    rpc,
    parts,
    limiter: methodLimiter(name, rpc),
    maxRequestBytes: rpc?.maxRequestBytes ?? parts.config.maxMessageBytes,
    maxAnswerBytes: rpc?.maxAnswerBytes ?? parts.config.maxMessageBytes,
    span: { grpc: spanOf(name, rpc, 'grpc'), web: spanOf(name, rpc, 'connectrpc') },
    measure: { grpc: measureOf(name, 'grpc'), web: measureOf(name, 'connectrpc') },
    allows: allowance(rpc?.allow ?? ['anyone']),
  };
}

export function createRpcEndpoint(rpc: Rpc, parts: ServerParts): Endpoint {
  return createEndpoint(methodName(rpc.method), rpc, parts);
}

function spanOf(name: string, rpc: Rpc | undefined, system: string) {
  return {
    kind: SpanKind.SERVER,
    attributes: {
      [attr.rpcSystem]: system,
      [attr.rpcMethod]: name,
      ...(rpc?.kind === 'server_streaming' ? { [attr.longLived]: true } : {}),
    },
  };
}

function measureOf(name: string, system: string): CallMeasure {
  return createCallMeasure('server', { [attr.rpcSystem]: system, [attr.rpcMethod]: name });
}

function methodLimiter(name: string, rpc: Rpc | undefined): CallerLimiter | undefined {
  if (rpc?.limit === undefined) return undefined;
  const { requestsPerSecond = 0, burst = requestsPerSecond * 2, inFlight = 0 } = rpc.limit;
  return createCallerLimiter(name, { requestsPerSecond, burst: Math.max(1, burst), inFlight });
}

function allowance(allow: readonly Allow[]): (caller: Caller) => boolean {
  const allowed = new Set<string>(allow);
  const anyone = allowed.has('anyone');
  return (caller) =>
    anyone || allowed.has(caller.kind) || (caller.kind === 'service' && allowed.has(`service:${caller.service}`));
}
