import type { DescService } from '@bufbuild/protobuf';
import { type Client, createClient } from '@connectrpc/connect';
import type { ServiceIdentity, ServiceName } from '@keytrail/auth';
import { createGrpcTransport } from './grpc-transport.ts';

export interface PeerOptions {
  /** `host:port` or any gRPC target. */
  readonly target: string;
  readonly identity: ServiceIdentity;
  readonly peer: ServiceName;
  /** Upper bound; within a call, what is left of its deadline when that is less. */
  readonly timeoutMs: number;
}

export type Peer<S extends DescService> = Client<S> & { close(): void };

/** A client of another service of Keytrail. A peer that cannot be reached is PEER_UNAVAILABLE with metadata `peer`. */
export function connectPeer<S extends DescService>(service: S, options: PeerOptions): Peer<S> {
  const transport = createGrpcTransport({
    target: options.target,
    authorization: () => options.identity.header(),
    defaultTimeoutMs: options.timeoutMs,
  });
  return Object.assign(createClient(service, transport), { close: () => transport.close() });
}
