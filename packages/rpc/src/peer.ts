import type { DescService } from '@bufbuild/protobuf';
import { type Client, Code, type ConnectError, createClient } from '@connectrpc/connect';
import type { ServiceIdentity, ServiceName } from '@keytrail/auth';
import { createGrpcTransport, type RetryPolicy } from './grpc-transport.ts';
import { readRefusal, refuse } from './refusal.ts';

export interface PeerOptions {
  /** `host:port` or any gRPC target. */
  readonly target: string;
  readonly identity: ServiceIdentity;
  readonly peer: ServiceName;
  /** Upper bound of a call; within a call that is being answered, what is left of its deadline when that is less. */
  readonly timeoutMs: number;
  readonly retry?: RetryPolicy;
}

export type Peer<S extends DescService> = Client<S> & { close(): void };

const retryAfterMs = 500;

/**
 * A client of another service of Keytrail, as this service. A peer that cannot be reached, is not ready, or does not answer in
 * time is PEER_UNAVAILABLE with metadata `peer`; its other refusals are thrown as they came.
 */
export function connectPeer<S extends DescService>(service: S, options: PeerOptions): Peer<S> {
  const { target, identity, peer, timeoutMs, retry } = options;

  function mapError(error: ConnectError): ConnectError {
    if (error.code !== Code.Unavailable && error.code !== Code.DeadlineExceeded) return error;
    if (readRefusal(error).reason === 'PEER_UNAVAILABLE' || readRefusal(error).reason === 'EXPLANATION_INCOMPLETE')
      return error;
    return refuse('PEER_UNAVAILABLE', `${peer} could not be asked`, { metadata: { peer }, retryAfterMs, cause: error });
  }

  const transport = createGrpcTransport({
    target,
    peer,
    mapError,
    authorization: () => identity.header(),
    defaultTimeoutMs: timeoutMs,
    ...(retry === undefined ? {} : { retry }),
  });
  return Object.assign(createClient(service, transport), { close: () => transport.close() });
}
