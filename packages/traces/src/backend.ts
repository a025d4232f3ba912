import { noLoss, readLoss, type TraceLoss } from './loss.ts';
import { MalformedTrace } from './malformed.ts';
import { readTraceText } from './read-body.ts';
import type { TraceSpan } from './span.ts';

export const dialects = ['keytrail', 'tempo', 'jaeger'] as const;
/** What a backend speaks: the local store's answers, Grafana Tempo's (OTLP/JSON), or Jaeger's query API (v1, v3). */
export type Dialect = (typeof dialects)[number];

export interface Backend {
  /** Base URL, with the path below which the API is. */
  readonly url: string;
  /** Found out by asking when it is not given. */
  readonly dialect?: Dialect | undefined;
  /** Sent along, such as Authorization or X-Scope-OrgID. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Longest time of one request in ms; 10,000 by default. */
  readonly timeoutMs?: number;
  /** Longest answer that is read in bytes; 64 MiB by default. */
  readonly maxBytes?: number;
}

/** Thrown when nothing answers. */
export class BackendUnreachable extends Error {}

/** Thrown when a backend answers, and not with a trace: it refuses, fails, or speaks something else. */
export class BackendRefused extends Error {}

interface Endpoint {
  readonly dialect: Dialect;
  readonly path: (traceId: string) => string;
}

// In this order: each later one is also a path that an earlier backend may answer with a page or a 404 of its own.
const endpoints: readonly Endpoint[] = [
  { dialect: 'keytrail', path: (id) => `traces/${id}` },
  { dialect: 'tempo', path: (id) => `api/v2/traces/${id}` },
  { dialect: 'jaeger', path: (id) => `api/traces/${id}` },
  { dialect: 'tempo', path: (id) => `api/traces/${id}` },
  { dialect: 'jaeger', path: (id) => `api/v3/traces/${id}` },
];

const defaultTimeoutMs = 10_000;
const defaultMaxBytes = 64 * 2 ** 20;

type Answer =
  | { readonly kind: 'spans'; readonly spans: TraceSpan[]; readonly loss: TraceLoss }
  | { readonly kind: 'unknown trace' }
  | {
      readonly kind: 'something else';
      readonly why: string;
      readonly malformed?: MalformedTrace;
      /** A bare 404, which some say of a trace, and all say of a path. */
      readonly perhapsUnknown?: boolean;
    };

/**
 * The spans of a trace; none when the backend has none. Throws BackendUnreachable, BackendRefused (refused, failed, no such API), and MalformedTrace when it
 * answers with something that is no trace.
 */
export async function readTrace(backend: Backend, traceId: string): Promise<TraceSpan[]> {
  const { spans } = await readTraceAnswer(backend, traceId);
  return spans;
}

/** As readTrace, with what the backend says that the spans lack. */
export async function readTraceAnswer(
  backend: Backend,
  traceId: string,
): Promise<{ readonly spans: TraceSpan[]; readonly loss: TraceLoss }> {
  const none = { spans: [], loss: noLoss };
  const asked: string[] = [];
  const others: (Extract<Answer, { kind: 'something else' }> & { readonly path: string })[] = [];
  for (const { dialect, path } of endpoints) {
    const at = path(traceId);
    if ((backend.dialect !== undefined && backend.dialect !== dialect) || asked.includes(at)) continue;
    asked.push(at);
    const answer = await ask(backend, at);
    if (answer.kind === 'spans')
      return { spans: answer.spans.filter((span) => span.traceId === traceId), loss: answer.loss };
    if (answer.kind === 'unknown trace') return none;
    others.push({ ...answer, path: at });
  }
  const malformed = others.find((other) => other.malformed !== undefined)?.malformed;
  if (malformed !== undefined) throw malformed;
  if (others.some((other) => other.perhapsUnknown) && others.every(({ why }) => !why.startsWith('failed'))) return none;
  const told = others.map(({ path, why }) => `/${path.replace(traceId, '<id>')} ${why}`).join('; ');
  throw new BackendRefused(`${originOf(backend)} has no API of traces that is known here: ${told}`);
}

/** An answer in full, within the bounds. Throws BackendUnreachable, and BackendRefused where it wants credentials or redirects. */
export async function readBackend(
  backend: Backend,
  path: string,
): Promise<{ readonly status: number; readonly text: string }> {
  const response = await get(backend, path);
  const { status } = response;
  const text = await readBounded(response, backend);
  if (status === 401 || status === 403)
    throw new BackendRefused(`${originOf(backend)} refuses with ${status}: it wants credentials, or others`);
  if (status >= 300 && status < 400)
    throw new BackendRefused(`${originOf(backend)} redirects with ${status}, as to a login; give the URL of its API`);
  return { status, text };
}

async function ask(backend: Backend, path: string): Promise<Answer> {
  const { status, text } = await readBackend(backend, path);
  if (status === 429 || status >= 500)
    return { kind: 'something else', why: `failed with ${status}${firstLine(text)}` };
  if (status === 404 && saysNoSuchTrace(text)) return { kind: 'unknown trace' };
  if (status === 404)
    return {
      kind: 'something else',
      why: 'answered 404',
      perhapsUnknown: !/page not found|GET \/traces|<html/i.test(text),
    };
  if (status !== 200) return { kind: 'something else', why: `answered ${status}${firstLine(text)}` };
  if (/^\s*</.test(text)) return { kind: 'something else', why: 'answered with a page' };
  try {
    const spans = readTraceText(text);
    return spans.length === 0 ? { kind: 'unknown trace' } : { kind: 'spans', spans, loss: readLoss(text) };
  } catch (malformed) {
    if (!(malformed instanceof MalformedTrace)) throw malformed;
    return { kind: 'something else', why: malformed.message, malformed };
  }
}

/** A 404 is about the trace where it says so; else there is no such path. */
function saysNoSuchTrace(text: string): boolean {
  return (
    /trace/i.test(text) && /not found|no such|unable to find|"httpCode":\s*404/i.test(text) && !/<html/i.test(text)
  );
}

async function get(backend: Backend, path: string): Promise<Response> {
  const base = backend.url.endsWith('/') ? backend.url : `${backend.url}/`;
  try {
    return await fetch(new URL(path, base), {
      headers: { accept: 'application/json', ...backend.headers },
      // Credentials go to the backend that was named, and nowhere else.
      redirect: 'manual',
      signal: AbortSignal.timeout(backend.timeoutMs ?? defaultTimeoutMs),
    });
  } catch (error) {
    throw new BackendUnreachable(`${originOf(backend)} does not answer: ${causeOf(error)}`, { cause: error });
  }
}

async function readBounded(response: Response, backend: Backend): Promise<string> {
  const maxBytes = backend.maxBytes ?? defaultMaxBytes;
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  try {
    for await (const chunk of response.body ?? []) {
      bytes += chunk.length;
      if (bytes > maxBytes) break;
      chunks.push(chunk);
    }
  } catch (error) {
    throw new BackendUnreachable(`${originOf(backend)} broke off its answer: ${causeOf(error)}`, { cause: error });
  }
  if (bytes > maxBytes) throw new BackendRefused(`${originOf(backend)} answers with more than ${maxBytes} bytes`);
  return Buffer.concat(chunks).toString('utf8');
}

/** Never the whole URL: it may hold credentials. */
function originOf({ url }: Backend): string {
  return new URL(url).host;
}

function firstLine(text: string): string {
  const line = text.trim().split('\n')[0]?.slice(0, 120) ?? '';
  return line === '' || line.startsWith('<') ? '' : ` (${line})`;
}

function causeOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === 'TimeoutError') return 'the time is over';
  if (error.message === 'bad port') return 'its port is one of other protocols, which is never asked';
  return error.cause instanceof Error ? causeOf(error.cause) : ((error as NodeJS.ErrnoException).code ?? error.message);
}
