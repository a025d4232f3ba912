import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Message } from '@bufbuild/protobuf';
import { ConnectError } from '@connectrpc/connect';
import { encodeEnvelope } from '@connectrpc/connect/protocol';
import {
  codeToHttpStatus,
  createEndStreamSerialization,
  endStreamFlag,
  errorToJsonBytes,
} from '@connectrpc/connect/protocol-connect';
import { setTrailerStatus } from '@connectrpc/connect/protocol-grpc';
import { trailerFlag, trailerSerialize } from '@connectrpc/connect/protocol-grpc-web';
import type { AnsweredRefusal } from './answer-refusal.ts';
import type { Endpoint } from './endpoint.ts';
import { decodeBinary, decodeJson, encodeBinary, encodeJson } from './message-codec.ts';
import type { Rpc } from './rpc.ts';
import { ServerCall } from './server-call.ts';
import {
  decompress,
  envelopeHeaderBytes,
  readBody,
  readOneEnvelope,
  readQueryMessage,
  readTimeout,
} from './web-request.ts';

/** How a request speaks: a protocol, a message format, and for a GET its query. */
export interface WebDialect {
  readonly protocol: 'connect' | 'connect-stream' | 'grpc-web';
  readonly json: boolean;
  readonly contentType: string;
  readonly query?: URLSearchParams;
}

export function createWebCall(
  endpoint: Endpoint,
  dialect: WebDialect,
  request: IncomingMessage,
  response: ServerResponse,
): ServerCall {
  if (dialect.protocol === 'connect') return new ConnectUnaryCall(endpoint, dialect, request, response);
  return dialect.protocol === 'grpc-web'
    ? new GrpcWebCall(endpoint, dialect, request, response)
    : new ConnectStreamCall(endpoint, dialect, request, response);
}

abstract class WebCall extends ServerCall {
  readonly dialect: WebDialect;
  readonly request: IncomingMessage;
  readonly response: ServerResponse;

  constructor(endpoint: Endpoint, dialect: WebDialect, request: IncomingMessage, response: ServerResponse) {
    const { headers } = request;
    super(endpoint, {
      wire: 'web',
      authorization: headers.authorization,
      traceparent: textOf(headers.traceparent),
      timeoutMs:
        dialect.protocol === 'grpc-web'
          ? readTimeout(undefined, textOf(headers['grpc-timeout']))
          : readTimeout(textOf(headers['connect-timeout-ms']), undefined),
    });
    this.dialect = dialect;
    this.request = request;
    this.response = response;
    response.setHeader('keytrail-trace-id', this.traceId);
    response.setHeader('keytrail-build', this.build);
    response.setHeader('keytrail-contract', this.contract);
    response.on('close', () => this.giveUp());
  }

  protected get maxBytes(): number {
    return this.endpoint.maxRequestBytes;
  }

  protected decode(bytes: Uint8Array): Message {
    const { input } = (this.endpoint.rpc as Rpc).method;
    return this.dialect.json ? decodeJson(input, bytes) : decodeBinary(input, bytes);
  }

  protected encode(message: object): Uint8Array {
    const { output } = (this.endpoint.rpc as Rpc).method;
    const { maxAnswerBytes } = this.endpoint;
    return this.dialect.json
      ? encodeJson(output, message, maxAnswerBytes)
      : encodeBinary(output, message, maxAnswerBytes);
  }
}

/** Connect, unary: the message is the body; a refusal is an HTTP status and JSON. */
class ConnectUnaryCall extends WebCall {
  #answer: Uint8Array | undefined;

  override async read(): Promise<Message> {
    const { query } = this.dialect;
    if (query !== undefined) {
      const encoding = query.get('compression') ?? undefined;
      return this.decode(await decompress(readQueryMessage(query), encoding, 'compression', this.maxBytes));
    }
    const body = await readBody(this.request, this.maxBytes);
    return this.decode(
      await decompress(body, this.request.headers['content-encoding'], 'content-encoding', this.maxBytes),
    );
  }

  override send(message: object): void {
    this.#answer = this.encode(message);
  }

  protected override end(): void {
    sendWhole(this.response, 200, this.dialect.contentType, this.#answer as Uint8Array);
  }

  protected override sendRefusal(refusal: AnsweredRefusal): void {
    sendWhole(
      this.response,
      codeToHttpStatus(refusal.code),
      'application/json',
      errorToJsonBytes(errorOf(refusal), undefined),
    );
  }
}

/** Messages in envelopes, of which the last tells how the answer ended. */
abstract class EnvelopedCall extends WebCall {
  protected abstract readonly compressionHeader: string;
  protected abstract lastEnvelope(refusal: AnsweredRefusal | undefined): Uint8Array;

  override async read(): Promise<Message> {
    const { flags, bytes } = readOneEnvelope(await readBody(this.request, this.maxBytes, envelopeHeaderBytes));
    const encoding =
      (flags & 1) === 0 ? undefined : (textOf(this.request.headers[this.compressionHeader]) ?? 'unknown');
    return this.decode(await decompress(bytes, encoding, this.compressionHeader, this.maxBytes));
  }

  override send(message: object): void | Promise<void> {
    const { response } = this;
    this.#begin();
    if (response.write(encodeEnvelope(0, this.encode(message)))) return undefined;
    return new Promise((resolve) => {
      const go = () => {
        response.off('drain', go).off('close', go);
        resolve();
      };
      response.on('drain', go).on('close', go);
    });
  }

  protected override end(): void {
    this.#begin();
    this.response.end(this.lastEnvelope(undefined));
  }

  protected override sendRefusal(refusal: AnsweredRefusal): void {
    if (this.response.destroyed) return;
    this.#begin();
    this.response.end(this.lastEnvelope(refusal));
  }

  protected trailers(): Headers {
    return new Headers({ 'keytrail-trace-id': this.traceId, 'keytrail-build': this.build });
  }

  #begin(): void {
    if (!this.response.headersSent) this.response.writeHead(200, { 'content-type': this.dialect.contentType });
  }
}

const endStream = createEndStreamSerialization(undefined);

class ConnectStreamCall extends EnvelopedCall {
  protected override readonly compressionHeader = 'connect-content-encoding';

  protected override lastEnvelope(refusal: AnsweredRefusal | undefined): Uint8Array {
    const metadata = this.trailers();
    const end = refusal === undefined ? { metadata } : { metadata, error: errorOf(refusal) };
    return encodeEnvelope(endStreamFlag, endStream.serialize(end));
  }
}

class GrpcWebCall extends EnvelopedCall {
  protected override readonly compressionHeader = 'grpc-encoding';

  protected override lastEnvelope(refusal: AnsweredRefusal | undefined): Uint8Array {
    const trailers = setTrailerStatus(this.trailers(), refusal && errorOf(refusal));
    return encodeEnvelope(trailerFlag, trailerSerialize(trailers));
  }
}

export function sendWhole(response: ServerResponse, status: number, contentType: string, body: Uint8Array): void {
  if (response.destroyed || response.headersSent) return;
  response.writeHead(status, { 'content-type': contentType, 'content-length': body.byteLength });
  response.end(body);
}

function errorOf(refusal: AnsweredRefusal): ConnectError {
  return new ConnectError(refusal.message, refusal.code, undefined, [...refusal.details]);
}

function textOf(header: string | string[] | undefined): string | undefined {
  return Array.isArray(header) ? header[0] : header;
}
