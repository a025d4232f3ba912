import type {
  DescMessage,
  DescMethod,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageInitShape,
  MessageShape,
} from '@bufbuild/protobuf';
import type { ServiceName } from '@keytrail/auth';
import type { Call } from './call.ts';

/** Who may call: a method is open to the union of these. `anyone` needs no token. */
export type Allow = 'device' | 'service' | `service:${ServiceName}` | 'operator' | 'anyone';

/** Bounds for one caller on one method, in one process; on top of the bounds over all methods (serverSettings). */
export interface RpcLimit {
  readonly requestsPerSecond?: number;
  /** By default twice the rate. */
  readonly burst?: number;
  readonly inFlight?: number;
}

export interface RpcOptions {
  readonly allow: readonly Allow[];
  readonly limit?: RpcLimit;
  /** Largest request in bytes; by default the server's bound for all methods, `maxMessageBytes`. */
  readonly maxRequestBytes?: number;
  /** Largest answer, or message of an answer, in bytes; by default `maxMessageBytes`. */
  readonly maxAnswerBytes?: number;
  /** Answered also while the server's `gate` is closed: for what tells why it is. */
  readonly whileClosed?: boolean;
}

export interface UnaryRpc extends RpcOptions {
  readonly kind: 'unary';
  readonly method: DescMethodUnary;
  handle(request: never, call: Call): Promise<object> | object;
}

export interface ServerStreamRpc extends RpcOptions {
  readonly kind: 'server_streaming';
  readonly method: DescMethodServerStreaming;
  handle(request: never, call: Call): AsyncIterable<object>;
}

/** A method of a contract with its handler, independent of the wires. */
export type Rpc = UnaryRpc | ServerStreamRpc;

/** A handler gets a valid request; what it throws with `refuse` travels as it is, anything else becomes INTERNAL_FAULT. */
export function unary<I extends DescMessage, O extends DescMessage>(
  method: DescMethodUnary<I, O>,
  options: RpcOptions & {
    handle(request: MessageShape<I>, call: Call): Promise<MessageInitShape<O>> | MessageInitShape<O>;
  },
): UnaryRpc {
  return { ...options, kind: 'unary', method: method as DescMethodUnary, handle: options.handle as UnaryRpc['handle'] };
}

/** A stream ends when its handler returns. It should return soon after `call.draining` aborts, and must when `call.signal` does. */
export function serverStream<I extends DescMessage, O extends DescMessage>(
  method: DescMethodServerStreaming<I, O>,
  options: RpcOptions & {
    handle(request: MessageShape<I>, call: Call): AsyncIterable<MessageInitShape<O>>;
  },
): ServerStreamRpc {
  return {
    ...options,
    kind: 'server_streaming',
    method: method as DescMethodServerStreaming,
    handle: options.handle as ServerStreamRpc['handle'],
  };
}

/** `package.Service/Method`. */
export function methodName(method: DescMethod): string {
  return `${method.parent.typeName}/${method.name}`;
}
