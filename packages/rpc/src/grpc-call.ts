import type { Message } from '@bufbuild/protobuf';
import { toBinary } from '@bufbuild/protobuf';
import { Metadata, type ServerUnaryCall, type ServerWritableStream, type sendUnaryData } from '@grpc/grpc-js';
import { StatusSchema } from '@keytrail/contracts';
import { type AnsweredRefusal, statusOf } from './answer-refusal.ts';
import { answer } from './chain.ts';
import type { Endpoint } from './endpoint.ts';
import { decodeBinary, encodeBinary, requestTooLarge } from './message-codec.ts';
import type { Rpc } from './rpc.ts';
import { type Arrival, ServerCall } from './server-call.ts';

type UnaryWire = ServerUnaryCall<Uint8Array, Uint8Array>;
type StreamWire = ServerWritableStream<Uint8Array, Uint8Array>;

export function answerGrpcUnary(endpoint: Endpoint, wire: UnaryWire, respond: sendUnaryData<Uint8Array>): void {
  const call = new GrpcUnaryCall(endpoint, wire, respond);
  wire.on('cancelled', () => call.giveUp());
  answer(call);
}

export function answerGrpcStream(endpoint: Endpoint, wire: StreamWire): void {
  const call = new GrpcStreamCall(endpoint, wire);
  wire.on('cancelled', () => call.giveUp());
  answer(call);
}

abstract class GrpcCall extends ServerCall {
  readonly request: Uint8Array;

  constructor(endpoint: Endpoint, wire: UnaryWire | StreamWire) {
    super(endpoint, arrivalOf(wire));
    this.request = wire.request;
  }

  override read(): Message {
    const { maxRequestBytes } = this.endpoint;
    if (this.request.byteLength > maxRequestBytes) throw requestTooLarge(maxRequestBytes);
    return decodeBinary((this.endpoint.rpc as Rpc).method.input, this.request);
  }

  protected encode(message: object): Uint8Array {
    return encodeBinary((this.endpoint.rpc as Rpc).method.output, message, this.endpoint.maxAnswerBytes);
  }

  protected trailers(): Metadata {
    const trailers = new Metadata();
    trailers.set('keytrail-trace-id', this.traceId);
    trailers.set('keytrail-build', this.build);
    trailers.set('keytrail-contract', this.contract);
    return trailers;
  }

  protected statusObject(refusal: AnsweredRefusal) {
    const metadata = this.trailers();
    metadata.set('grpc-status-details-bin', Buffer.from(toBinary(StatusSchema, statusOf(refusal))));
    return { code: refusal.code as number, details: refusal.message, metadata };
  }
}

class GrpcUnaryCall extends GrpcCall {
  readonly #respond: sendUnaryData<Uint8Array>;
  #answer: Uint8Array | undefined;

  constructor(endpoint: Endpoint, wire: UnaryWire, respond: sendUnaryData<Uint8Array>) {
    super(endpoint, wire);
    this.#respond = respond;
  }

  override send(message: object): void {
    this.#answer = this.encode(message);
  }

  protected override end(): void {
    this.#respond(null, this.#answer, this.trailers());
  }

  protected override sendRefusal(refusal: AnsweredRefusal): void {
    this.#respond(this.statusObject(refusal));
  }
}

class GrpcStreamCall extends GrpcCall {
  readonly #wire: StreamWire;

  constructor(endpoint: Endpoint, wire: StreamWire) {
    super(endpoint, wire);
    this.#wire = wire;
    wire.sendMetadata(this.trailers());
  }

  override send(message: object): void | Promise<void> {
    if (this.#wire.write(this.encode(message))) return undefined;
    return new Promise((resolve) => {
      const go = () => {
        this.#wire.off('drain', go).off('cancelled', go).off('close', go);
        resolve();
      };
      this.#wire.on('drain', go).on('cancelled', go).on('close', go);
    });
  }

  protected override end(): void {
    this.#wire.end(this.trailers());
  }

  protected override sendRefusal(refusal: AnsweredRefusal): void {
    // Destroying the stream would leave the client without a status.
    this.#wire.emit('error', this.statusObject(refusal));
  }
}

function arrivalOf(wire: UnaryWire | StreamWire): Arrival {
  const deadline = wire.getDeadline();
  return {
    wire: 'grpc',
    authorization: textOf(wire.metadata, 'authorization'),
    traceparent: textOf(wire.metadata, 'traceparent'),
    timeoutMs: deadline === Number.POSITIVE_INFINITY ? undefined : Number(deadline) - Date.now(),
  };
}

function textOf(metadata: Metadata, name: string): string | undefined {
  const [value] = metadata.get(name);
  return typeof value === 'string' ? value : undefined;
}
