import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { MethodOptions_IdempotencyLevel } from '@bufbuild/protobuf/wkt';
import { Code, cors } from '@connectrpc/connect';
import { parseContentType } from '@connectrpc/connect/protocol-connect';
import { parseContentType as parseGrpcWebContentType } from '@connectrpc/connect/protocol-grpc-web';
import { attr, contextFromTraceparent, currentTraceId, withSpan } from '@keytrail/telemetry';
import { answer } from './chain.ts';
import { codeName } from './codes.ts';
import type { ServerConfig } from './config.ts';
import type { Endpoint } from './endpoint.ts';
import type { Readiness } from './readiness.ts';
import { createWebCall, sendWhole, type WebDialect } from './web-call.ts';

export interface WebServer {
  readonly port: number;
  /** Takes no new connections and resolves when the open requests have been answered. */
  drain(): Promise<void>;
  /** Ends what is still open. */
  close(): void;
}

export interface WebServerOptions {
  readonly config: ServerConfig;
  /** By `package.Service/Method`. */
  readonly endpoints: ReadonlyMap<string, Endpoint>;
  readonly unknown: Endpoint;
  readonly build: string;
  readiness(): Promise<Readiness>;
}

const refusedAsConnect: WebDialect = { protocol: 'connect', json: true, contentType: 'application/json' };

/** Connect, gRPC-Web and JSON over HTTP/1.1; TLS and HTTP/2 are the load balancer's. */
export async function startWebServer({
  config,
  endpoints,
  unknown,
  build,
  readiness,
}: WebServerOptions): Promise<WebServer> {
  let draining = false;
  let unanswered = 0;
  const origins = allowedOrigins(config.allowedOrigins);

  const server = createServer({ keepAliveTimeout: 65_000 }, (request, response) => {
    unanswered += 1;
    response.on('close', () => {
      unanswered -= 1;
      closeAnswered();
    });
    if (draining) response.setHeader('connection', 'close');
    response.setHeader('cache-control', 'no-store');
    response.setHeader('x-content-type-options', 'nosniff');
    const { method = 'GET', url = '/' } = request;
    const mark = url.indexOf('?');
    const path = mark === -1 ? url : url.slice(0, mark);
    const allowed = origins(request, response);
    if (method === 'OPTIONS') return preflight(response, allowed);
    if (path === '/healthz') return sendJson(response, 200, { healthy: true, build });
    if (path === '/readyz') {
      void readiness().then((answer) => sendJson(response, answer.ready ? 200 : 503, answer));
      return;
    }
    serve(request, response, method, path, mark === -1 ? '' : url.slice(mark + 1));
  });

  /** A client that was refused may leave its request unfinished: its connection never becomes idle by itself. */
  function closeAnswered(): void {
    if (draining && unanswered === 0) server.closeAllConnections();
  }

  function serve(
    request: IncomingMessage,
    response: ServerResponse,
    method: string,
    path: string,
    query: string,
  ): void {
    const endpoint = endpoints.get(path.slice(1)) ?? unknown;
    const contentType = request.headers['content-type'];
    const dialect =
      method === 'GET'
        ? dialectOfQuery(endpoint, query)
        : method === 'POST'
          ? dialectOf(endpoint, contentType)
          : undefined;
    if (endpoint.rpc === undefined) {
      answer(createWebCall(unknown, dialect ?? refusedAsConnect, request, response));
    } else if (dialect !== undefined) {
      answer(createWebCall(endpoint, dialect, request, response));
    } else {
      response.setHeader('allow', allowsGet(endpoint) ? 'GET, POST' : 'POST');
      if (method === 'POST') refuseRequest(endpoint, request, response, 415, contentTypesOf(endpoint));
      else refuseRequest(endpoint, request, response, 405, ['POST']);
    }
  }

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(config.webPort, config.host, resolve);
  });

  return {
    port: (server.address() as AddressInfo).port,
    drain: () => {
      draining = true;
      return new Promise((resolve) => {
        server.close(() => resolve());
        server.closeIdleConnections();
        closeAnswered();
      });
    },
    close: () => server.closeAllConnections(),
  };
}

function allowsGet({ rpc }: Endpoint): boolean {
  return rpc?.kind === 'unary' && rpc.method.idempotency === MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS;
}

/** A safe read by GET: `?message=<JSON>`, or all that the Connect protocol allows. */
function dialectOfQuery(endpoint: Endpoint, text: string): WebDialect | undefined {
  if (!allowsGet(endpoint)) return undefined;
  const query = new URLSearchParams(text);
  const json = (query.get('encoding') ?? 'json') === 'json';
  return { protocol: 'connect', json, contentType: json ? 'application/json' : 'application/proto', query };
}

function dialectOf(endpoint: Endpoint, contentType: string | undefined): WebDialect | undefined {
  if (contentType === undefined) return undefined;
  const connect = parseContentType(contentType);
  if (connect !== undefined) {
    const json = !connect.binary;
    const streaming = endpoint.rpc === undefined ? connect.stream : endpoint.rpc.kind === 'server_streaming';
    if (connect.stream !== streaming) return undefined;
    const format = json ? 'json' : 'proto';
    return connect.stream
      ? { protocol: 'connect-stream', json, contentType: `application/connect+${format}` }
      : { protocol: 'connect', json, contentType: `application/${format}` };
  }
  const grpcWeb = parseGrpcWebContentType(contentType);
  if (grpcWeb === undefined || grpcWeb.text) return undefined;
  return {
    protocol: 'grpc-web',
    json: !grpcWeb.binary,
    contentType: `application/grpc-web+${grpcWeb.binary ? 'proto' : 'json'}`,
  };
}

function contentTypesOf({ rpc }: Endpoint): string[] {
  const grpcWeb = ['application/grpc-web+proto', 'application/grpc-web+json'];
  return rpc?.kind === 'server_streaming'
    ? ['application/connect+proto', 'application/connect+json', ...grpcWeb]
    : ['application/proto', 'application/json', ...grpcWeb];
}

/** What is no call at all has a trace too, which the answer's header names. */
function refuseRequest(
  endpoint: Endpoint,
  { headers, method }: IncomingMessage,
  response: ServerResponse,
  status: number,
  supported: string[],
): void {
  const { telemetry } = endpoint.parts;
  const parent = contextFromTraceparent(String(headers.traceparent ?? ''), { sampling: 'ours' });
  withSpan(endpoint.name, { ...endpoint.span.web, parent }, (span) => {
    const code = codeName(Code.InvalidArgument);
    span.setAttribute(attr.rpcStatusCode, code);
    response.setHeader('keytrail-trace-id', currentTraceId());
    response.setHeader('keytrail-build', telemetry.build.writerBuild);
    telemetry.log.info({ method: endpoint.name, code, status, verb: method }, 'a request was refused');
    sendJson(response, status, unsupported(supported));
  });
}

function unsupported(supported: string[]) {
  return { code: 'invalid_argument', message: `use one of: ${supported.join(', ')}` };
}

const requestHeaders = [...cors.allowedHeaders, 'authorization', 'traceparent', 'tracestate'].join(', ');
const answerHeaders = [...cors.exposedHeaders, 'keytrail-trace-id', 'keytrail-build', 'keytrail-contract'].join(', ');

/** Sets what a browser needs to let an allowed origin read the answer, and tells whether it is allowed. */
function allowedOrigins(list: readonly string[]): (request: IncomingMessage, response: ServerResponse) => boolean {
  const any = list.includes('*');
  const origins = new Set(list);
  return (request, response) => {
    const { origin } = request.headers;
    if (origin === undefined) return false;
    response.setHeader('vary', 'origin');
    if (!any && !origins.has(origin)) return false;
    response.setHeader('access-control-allow-origin', any ? '*' : origin);
    response.setHeader('access-control-expose-headers', answerHeaders);
    return true;
  };
}

function preflight(response: ServerResponse, allowed: boolean): void {
  if (!allowed) return void response.writeHead(403).end();
  response.writeHead(204, {
    'access-control-allow-methods': 'GET, POST',
    'access-control-allow-headers': requestHeaders,
    'access-control-max-age': '7200',
  });
  response.end();
}

function sendJson(response: ServerResponse, status: number, body: object): void {
  sendWhole(response, status, 'application/json', Buffer.from(JSON.stringify(body)));
}
