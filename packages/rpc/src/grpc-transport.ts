import type { Transport } from '@connectrpc/connect';

export interface RetryPolicy {
  /** Tries after the first; by default 2. 0 switches retries off. */
  readonly retries?: number;
  /** Wait before the first retry, doubled for each further one, jittered; by default 50. */
  readonly backoffMs?: number;
}

export interface GrpcTransportOptions {
  /** `host:port`, or any gRPC target such as `dns:///session:50051`. */
  readonly target: string;
  /** The value of `authorization` of each call. */
  readonly authorization?: () => string | Promise<string>;
  /** Deadline of a unary call that brings none; by default 10000. */
  readonly defaultTimeoutMs?: number;
  /** Applies to methods that are NO_SIDE_EFFECTS or IDEMPOTENT, for UNAVAILABLE alone. */
  readonly retry?: RetryPolicy;
  readonly maxMessageBytes?: number;
}

export interface GrpcTransport extends Transport {
  close(): void;
}

/** A Connect transport over grpc-js: `createClient(SessionService, createGrpcTransport({ target }))`. */
export function createGrpcTransport(_options: GrpcTransportOptions): GrpcTransport {
  throw new Error('not connected yet');
}
