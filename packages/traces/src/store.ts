import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { TraceJournal } from './journal.ts';
import type { TraceBounds } from './memory.ts';
import { TraceMemory } from './memory.ts';
import { NotOtlp, readOtlpSpans } from './otlp.ts';

export interface TraceStoreOptions {
  /** 0 picks a free one. */
  readonly port?: number;
  /** Also append the spans to a file there. */
  readonly folder?: string;
  readonly bounds?: Partial<TraceBounds>;
}

export interface TraceStore {
  /** Base URL, to be used as KEYTRAIL_OTLP_URL and with fetchTrace. */
  readonly url: string;
  readonly port: number;
  stop(): Promise<void>;
}

const defaultBounds: TraceBounds = {
  traces: 2_000,
  bytes: 64 * 2 ** 20,
  spansPerTrace: 5_000,
  bytesPerSpan: 256 * 2 ** 10,
};
const maxBodyBytes = 16 * 2 ** 20;
const unzip = promisify(gunzip);

/**
 * An OTLP/HTTP JSON receiver on the loopback interface that remembers the newest traces, for one machine:
 * `POST /v1/traces`; `GET /traces/<id>` → `{ id, spans, dropped }`, 404 when unknown; `GET /traces?limit=&misses=true` → summaries, newest first.
 * Metrics and logs are accepted and discarded.
 */
export async function startTraceStore({ port = 0, folder, bounds }: TraceStoreOptions = {}): Promise<TraceStore> {
  const memory = new TraceMemory({ ...defaultBounds, ...bounds });
  const journal = folder === undefined ? undefined : new TraceJournal(folder);
  const server = createServer((request, response) => {
    serve(request, response, memory, journal).catch((error: unknown) => {
      const refused = error instanceof NotOtlp || error instanceof SyntaxError;
      answer(response, refused ? 400 : 500, { error: refused ? error.message : 'the request could not be handled' });
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', resolve);
  });
  const listening = (server.address() as AddressInfo).port;
  return {
    url: `http://127.0.0.1:${listening}`,
    port: listening,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function serve(
  request: IncomingMessage,
  response: ServerResponse,
  memory: TraceMemory,
  journal: TraceJournal | undefined,
): Promise<void> {
  const { pathname, searchParams } = new URL(request.url ?? '/', 'http://store');
  if (request.method === 'POST') {
    const body = await readBody(request);
    if (body === undefined) return answer(response, 413, { error: `a body is at most ${maxBodyBytes} bytes` });
    if (pathname === '/v1/metrics' || pathname === '/v1/logs') return answer(response, 200, {});
    if (pathname === '/v1/traces') {
      if (!request.headers['content-type']?.startsWith('application/json'))
        return answer(response, 415, { error: 'send OTLP as application/json' });
      const spans = readOtlpSpans(JSON.parse(body.toString('utf8')));
      for (const span of spans) memory.add(span);
      await journal?.append(spans);
      return answer(response, 200, {});
    }
  } else if (request.method === 'GET') {
    if (pathname === '/traces')
      return answer(response, 200, {
        traces: memory.list({ limit: readLimit(searchParams), misses: searchParams.get('misses') === 'true' }),
      });
    const id = /^\/traces\/([0-9a-f]{32})$/i.exec(pathname)?.[1]?.toLowerCase();
    if (id !== undefined) {
      const { spans, dropped } = memory.read(id);
      return answer(
        response,
        spans.length > 0 ? 200 : 404,
        spans.length > 0 ? { id, spans, dropped } : { error: 'no such trace' },
      );
    }
  }
  answer(response, 404, { error: 'POST /v1/traces, GET /traces?limit=&misses=true, GET /traces/<32 hex digits>' });
}

function readLimit(searchParams: URLSearchParams): number {
  const limit = Number(searchParams.get('limit') ?? 20);
  return Number.isInteger(limit) && limit > 0 ? Math.min(limit, 1_000) : 20;
}

async function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes <= maxBodyBytes) chunks.push(chunk);
  }
  if (bytes > maxBodyBytes) return undefined;
  const body = Buffer.concat(chunks);
  if (request.headers['content-encoding'] !== 'gzip') return body;
  return unzip(body, { maxOutputLength: maxBodyBytes }).catch(() => {
    throw new NotOtlp('the body is not gzip, or too long');
  });
}

function answer(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}
