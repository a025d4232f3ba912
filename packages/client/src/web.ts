import type { Interceptor, Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-web';
import type { Transports } from './calls.ts';
import { type Token, tokenSource } from './token.ts';
import { traceCalls } from './web-spans.ts';

export type { Token } from './token.ts';

export interface WebTransportOptions {
  /** Base URLs of the four services. */
  readonly targets: Readonly<Record<'identityKeys' | 'conversation' | 'session' | 'presence', string>>;
  readonly token: Token;
  /** Deadline of each unary call; 10000 by default. */
  readonly timeoutMs?: number;
  /** For tests, or for a service worker. */
  readonly fetch?: typeof globalThis.fetch;
}

const defaultTimeoutMs = 10_000;

/** Connections to the four services by the Connect protocol over fetch. */
export function createWebTransports(options: WebTransportOptions): Transports {
  const { targets, fetch, timeoutMs = defaultTimeoutMs } = options;
  const token = tokenSource(options.token);
  const authorize: Interceptor = (next) => async (request) => {
    request.header.set('authorization', `Bearer ${await token()}`);
    return next(request);
  };
  const connect = (baseUrl: string): Transport => {
    const transport = createConnectTransport({
      baseUrl,
      useBinaryFormat: true,
      interceptors: [traceCalls, authorize],
      ...(fetch !== undefined && { fetch }),
    });
    return {
      unary: (method, signal, ms, ...rest) => transport.unary(method, signal, ms ?? timeoutMs, ...rest),
      // A stream that is kept open has no deadline.
      stream: transport.stream,
    };
  };
  return {
    identityKeys: connect(targets.identityKeys),
    conversation: connect(targets.conversation),
    session: connect(targets.session),
    presence: connect(targets.presence),
  };
}
