import { setTimeout as wait } from 'node:timers/promises';
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodStreaming,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf';
import { MethodOptions_IdempotencyLevel } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError, type StreamResponse, type Transport, type UnaryResponse } from '@connectrpc/connect';
import { type ChannelCredentials, Client, credentials, type Metadata, type StatusObject } from '@grpc/grpc-js';
import {
  attr,
  context,
  currentTraceparent,
  markMiss,
  type Span,
  type SpanAttributes,
  SpanKind,
  SpanStatusCode,
  trace,
  tracer,
} from '@keytrail/telemetry';
import { currentCall } from './call.ts';
import { type CallMeasure, createCallMeasure } from './call-metrics.ts';
import { codeName, okCode } from './codes.ts';
import { errorOfStatus, type HeaderValues, headersOf, metadataOf } from './grpc-status.ts';
import { notePeerBuild } from './peer-builds.ts';
import { readRefusal } from './refusal.ts';
import { methodName } from './rpc.ts';

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
  /** Deadline of a unary call that brings none; by default 10000. Within a call that is being answered, never later than its deadline. */
  readonly defaultTimeoutMs?: number;
  /** Applies to unary methods that are NO_SIDE_EFFECTS or IDEMPOTENT, for UNAVAILABLE alone. */
  readonly retry?: RetryPolicy;
  /** By default 4 MiB. */
  readonly maxMessageBytes?: number;
  /** By default the connection is not encrypted. */
  readonly credentials?: ChannelCredentials;
  /** Rewrites each error before it is thrown. */
  readonly mapError?: (error: ConnectError) => ConnectError;
  /** Name of the service that answers, for telemetry. */
  readonly peer?: string;
}

export interface GrpcTransport extends Transport {
  close(): void;
}

const roundRobin = JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] });

/**
 * A Connect transport over grpc-js: `createClient(SessionService, createGrpcTransport({ target }))`. Unary and server-streaming
 * methods. Errors are ConnectErrors with their details: see readRefusal. Addresses behind one name are used in turn.
 */
export function createGrpcTransport(options: GrpcTransportOptions): GrpcTransport {
  const client = new Client(options.target, options.credentials ?? credentials.createInsecure(), {
    'grpc.service_config': roundRobin,
    'grpc.service_config_disable_resolution': 1,
    'grpc.max_receive_message_length': options.maxMessageBytes ?? 4 * 1024 * 1024,
    'grpc.max_send_message_length': -1,
    'grpc.keepalive_time_ms': 30_000,
    'grpc.keepalive_timeout_ms': 5_000,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1_000,
    'grpc.dns_min_time_between_resolutions_ms': 5_000,
    // Retries are ours: they know which methods are idempotent.
    'grpc.enable_retries': 0,
    'grpc.enable_http_proxy': 0,
  });
  const calling = new Map<DescMethod, Calling>();
  function callingOf(method: DescMethod): Calling {
    let known = calling.get(method);
    if (known === undefined) {
      known = describeCalling(method, client, options);
      calling.set(method, known);
    }
    return known;
  }
  return {
    unary: (method, signal, timeoutMs, header, input) =>
      callUnary(callingOf(method), method, signal, timeoutMs, header, input),
    stream: (method, signal, timeoutMs, header, input) =>
      openStream(callingOf(method), method, signal, timeoutMs, header, input),
    close: () => client.close(),
  };
}

/** What all calls of one method through one transport have in common. */
interface Calling {
  readonly client: Client;
  readonly options: GrpcTransportOptions;
  readonly name: string;
  readonly path: string;
  readonly retries: number;
  readonly spanOptions: { readonly kind: SpanKind; readonly attributes: SpanAttributes };
  readonly measure: CallMeasure;
}

function describeCalling(method: DescMethod, client: Client, options: GrpcTransportOptions): Calling {
  const name = methodName(method);
  const attributes = { [attr.rpcSystem]: 'grpc', [attr.rpcMethod]: name };
  const peer = options.peer === undefined ? {} : { [attr.peer]: options.peer };
  const streams = method.methodKind === 'unary' ? {} : { [attr.longLived]: true };
  return {
    client,
    options,
    name,
    path: `/${name}`,
    retries: isIdempotent(method) ? (options.retry?.retries ?? 2) : 0,
    spanOptions: {
      kind: SpanKind.CLIENT,
      attributes: { ...attributes, [attr.serverAddress]: options.target, ...peer, ...streams },
    },
    measure: createCallMeasure('client', attributes),
  };
}

function isIdempotent({ idempotency }: DescMethod): boolean {
  return (
    idempotency === MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS ||
    idempotency === MethodOptions_IdempotencyLevel.IDEMPOTENT
  );
}

/** The span and the clock of one call. */
class CallInProgress {
  readonly calling: Calling;
  readonly span: Span;
  readonly #startedAt = performance.now();
  #ended = false;

  constructor(calling: Calling) {
    this.calling = calling;
    this.span = tracer().startSpan(calling.name, calling.spanOptions, context.active());
  }

  run<T>(work: () => T): T {
    return context.with(trace.setSpan(context.active(), this.span), work);
  }

  succeed(): void {
    this.#end(okCode);
  }

  /** Tells telemetry what the call ended with, and returns what to throw. */
  fail(thrown: unknown): ConnectError {
    const error = ConnectError.from(thrown);
    const { reason, miss } = readRefusal(error);
    // Each process on the way keeps its part of the trace of a miss.
    if (miss !== undefined) this.run(() => markMiss(reason));
    this.span.setAttribute(attr.errorType, reason || codeName(error.code));
    if (error.code !== Code.NotFound) this.span.setStatus({ code: SpanStatusCode.ERROR, message: error.rawMessage });
    this.#end(error.code);
    return this.calling.options.mapError?.(error) ?? error;
  }

  #end(code: number): void {
    if (this.#ended) return;
    this.#ended = true;
    this.span.setAttribute(attr.rpcStatusCode, codeName(code));
    this.span.end();
    this.calling.measure.record(code, this.#startedAt);
  }
}

async function callUnary<I extends DescMessage, O extends DescMessage>(
  calling: Calling,
  method: DescMethodUnary<I, O>,
  callerSignal: AbortSignal | undefined,
  timeoutMs: number | undefined,
  header: HeaderValues,
  input: MessageInitShape<I>,
): Promise<UnaryResponse<I, O>> {
  const deadlineAt = deadlineOf(timeoutMs ?? calling.options.defaultTimeoutMs ?? 10_000);
  const signal = withCurrentCall(callerSignal);
  const bytes = Buffer.from(toBinary(method.input, create(method.input, input)));
  const call = new CallInProgress(calling);
  for (let tried = 0; ; tried += 1) {
    try {
      const metadata = await call.run(() => outgoingMetadata(calling, header));
      const answer = await attempt(calling, method, bytes, metadata, deadlineAt, signal);
      call.succeed();
      return answer;
    } catch (thrown) {
      const waitMs = backoffMs(calling, thrown, tried);
      if (waitMs === undefined || Date.now() + waitMs >= deadlineAt || signal?.aborted === true)
        throw call.fail(thrown);
      await wait(waitMs);
    }
  }
}

function attempt<I extends DescMessage, O extends DescMessage>(
  calling: Calling,
  method: DescMethodUnary<I, O>,
  bytes: Buffer,
  metadata: Metadata,
  deadline: number,
  signal: AbortSignal | undefined,
): Promise<UnaryResponse<I, O>> {
  const { client, path } = calling;
  return new Promise((resolve, reject) => {
    const header = new Headers();
    const trailer = new Headers();
    let message: MessageShape<O> | undefined;
    const decode = (answer: Buffer) => fromBinary(method.output, plainBytes(answer));
    const wire = client.makeUnaryRequest(path, asIs, decode, bytes, metadata, { deadline }, (error, answer) => {
      stopListening();
      if (error !== null) reject(errorOfStatus(error, signal));
      else message = answer;
    });
    const stopListening = cancelOnAbort(wire, signal);
    wire.on('metadata', (received: Metadata) => headersOf(received, header));
    // Comes after the callback, with the trailers.
    wire.on('status', (status: StatusObject) => {
      noteBuild(calling, status);
      headersOf(status.metadata, trailer);
      if (message !== undefined) resolve({ stream: false, service: method.parent, method, header, trailer, message });
    });
  });
}

async function openStream<I extends DescMessage, O extends DescMessage>(
  calling: Calling,
  method: DescMethodStreaming<I, O>,
  signal: AbortSignal | undefined,
  timeoutMs: number | undefined,
  outgoing: HeaderValues,
  input: AsyncIterable<MessageInitShape<I>>,
): Promise<StreamResponse<I, O>> {
  if (method.methodKind !== 'server_streaming')
    throw new ConnectError(`${calling.name} streams requests, which this transport does not do`, Code.Unimplemented);
  const request = await firstOf(input);
  const bytes = Buffer.from(toBinary(method.input, create(method.input, request)));
  const call = new CallInProgress(calling);
  const header = new Headers();
  const trailer = new Headers();
  try {
    const metadata = await call.run(() => outgoingMetadata(calling, outgoing));
    const decode = (answer: Buffer) => fromBinary(method.output, plainBytes(answer));
    const options = timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
    const wire = calling.client.makeServerStreamRequest(calling.path, asIs, decode, bytes, metadata, options);
    const stopListening = cancelOnAbort(wire, signal);
    await new Promise<void>((resolve, reject) => {
      wire.on('metadata', (received: Metadata) => {
        headersOf(received, header);
        resolve();
      });
      // Stays on after the first answer: an error that nobody iterates must not end the process.
      wire.on('error', (error) => reject(errorOfStatus(error as Error & StatusObject, signal)));
      wire.on('status', (status: StatusObject) => {
        noteBuild(call.calling, status);
        headersOf(status.metadata, trailer);
        if (status.code === 0) resolve();
      });
    });
    async function* messages(): AsyncGenerator<MessageShape<O>> {
      try {
        for await (const message of wire) yield message as MessageShape<O>;
        call.succeed();
      } catch (error) {
        throw call.fail(errorOfStatus(error as Error & StatusObject, signal));
      } finally {
        stopListening();
        wire.cancel();
        call.succeed();
      }
    }
    return { stream: true, service: method.parent, method, header, trailer, message: messages() };
  } catch (thrown) {
    throw call.fail(thrown);
  }
}

/** What answers says in its trailers which build it is, refusals too. */
function noteBuild({ options: { peer } }: Calling, { metadata }: StatusObject): void {
  if (peer === undefined) return;
  const [build] = metadata.get('keytrail-build');
  if (typeof build !== 'string') return;
  const [contract] = metadata.get('keytrail-contract');
  notePeerBuild(peer, build, typeof contract === 'string' ? contract : '');
}

async function firstOf<T>(input: AsyncIterable<T>): Promise<T> {
  for await (const message of input) return message;
  throw new ConnectError('the call has no request', Code.InvalidArgument);
}

async function outgoingMetadata({ options }: Calling, header: HeaderValues): Promise<Metadata> {
  const metadata = metadataOf(header);
  const traceparent = currentTraceparent();
  if (traceparent !== '') metadata.set('traceparent', traceparent);
  if (options.authorization !== undefined) {
    const authorization = options.authorization();
    metadata.set('authorization', typeof authorization === 'string' ? authorization : await authorization);
  }
  return metadata;
}

/** The deadline of the call that is being answered bounds those that it makes. */
function deadlineOf(timeoutMs: number): number {
  return Math.min(Date.now() + timeoutMs, currentCall()?.deadlineAt ?? Number.POSITIVE_INFINITY);
}

/** Who gives up a call gives up those that it makes. */
function withCurrentCall(signal: AbortSignal | undefined): AbortSignal | undefined {
  const current = currentCall()?.signal;
  if (current === undefined) return signal;
  return signal === undefined ? current : AbortSignal.any([signal, current]);
}

function backoffMs({ retries, options }: Calling, thrown: unknown, tried: number): number | undefined {
  if (tried >= retries || !(thrown instanceof ConnectError) || thrown.code !== Code.Unavailable) return undefined;
  return (options.retry?.backoffMs ?? 50) * 2 ** tried * (0.5 + Math.random());
}

function cancelOnAbort(wire: { cancel(): void }, signal: AbortSignal | undefined): () => void {
  if (signal === undefined) return () => {};
  const cancel = () => wire.cancel();
  if (signal.aborted) cancel();
  else signal.addEventListener('abort', cancel, { once: true });
  return () => signal.removeEventListener('abort', cancel);
}

function asIs(bytes: Buffer): Buffer {
  return bytes;
}

function plainBytes(buffer: Buffer): Uint8Array {
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}
