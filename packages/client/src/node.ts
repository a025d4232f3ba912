import type { ChannelCredentials } from '@grpc/grpc-js';
import { createGrpcTransport } from '@keytrail/rpc/grpc-transport';
import type { Transports } from './calls.ts';
import { type Token, tokenSource } from './token.ts';

export { nodePrimitives } from '@keytrail/crypto/node';
export type { Token } from './token.ts';

export interface NodeTransportOptions {
  /** gRPC targets, `host:port` or `dns:///…`. */
  readonly targets: Readonly<Record<'identityKeys' | 'conversation' | 'session' | 'presence', string>>;
  readonly token: Token;
  /** Deadline of each unary call; 10000 by default. */
  readonly timeoutMs?: number;
  /** By default the connections are not encrypted. */
  readonly credentials?: ChannelCredentials;
}

/** Connections to the four services over gRPC. */
export function createNodeTransports(options: NodeTransportOptions): Transports & { close(): void } {
  const { targets, timeoutMs, credentials } = options;
  const token = tokenSource(options.token);
  const authorization = () => {
    const now = token();
    return typeof now === 'string' ? `Bearer ${now}` : now.then((later) => `Bearer ${later}`);
  };
  const connect = (target: string, peer: string) =>
    createGrpcTransport({
      target,
      peer,
      authorization,
      // A claim of a large group answers with more than the usual.
      maxMessageBytes: 16 * 1024 * 1024,
      // The client retries: it knows what the whole operation can wait for.
      retry: { retries: 0 },
      ...(timeoutMs !== undefined && { defaultTimeoutMs: timeoutMs }),
      ...(credentials !== undefined && { credentials }),
    });
  const transports = {
    identityKeys: connect(targets.identityKeys, 'identity-keys'),
    conversation: connect(targets.conversation, 'conversation'),
    session: connect(targets.session, 'session'),
    presence: connect(targets.presence, 'presence'),
  };
  return {
    ...transports,
    close() {
      for (const transport of Object.values(transports)) transport.close();
    },
  };
}
