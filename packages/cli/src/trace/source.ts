import {
  type Backend,
  type Dialect,
  listTraces,
  noLoss,
  readTraceAnswer,
  type TraceLoss,
  type TraceSpan,
  type TraceSummary,
} from '@keytrail/traces';
import type { Environment } from '../connection.ts';
import { UsageError } from '../exit-codes.ts';
import { readTraceFile, type TraceFile } from './file.ts';
import { readHeaders } from './headers.ts';

export interface SourceOptions {
  readonly backend?: string;
  readonly dialect?: Dialect;
  readonly headersFile?: string;
  readonly file?: string;
}

/** Where traces come from. */
export interface TraceSource {
  /** For words: a host, or a file. */
  readonly name: string;
  /** Whether looking again may show more. */
  readonly grows: boolean;
  /** No spans for a trace that it does not have. */
  read(traceId: string): Promise<TraceSpan[]>;
  /** What it said that the spans lack which it gave last, as far as it tells. */
  lossOf(traceId: string): TraceLoss;
  /** The newest traces, newest first. */
  list(of: { readonly limit: number; readonly misses: boolean }): Promise<readonly TraceSummary[]>;
  /** The only trace that it has; undefined when it has several, or cannot tell. */
  readonly only?: string;
}

/** Throws UsageError, and MalformedTrace of a file. */
export async function openSource(
  options: SourceOptions,
  environment: Environment,
  timeoutMs: number,
): Promise<TraceSource> {
  if (options.file !== undefined) {
    if (options.backend !== undefined) throw new UsageError('give --file or --backend, not both');
    return sourceOfFile(options.file, await readTraceFile(options.file));
  }
  const url = options.backend ?? environment.KEYTRAIL_TRACE_BACKEND ?? '';
  if (url === '')
    throw new UsageError('no traces to read: give --backend <url>, KEYTRAIL_TRACE_BACKEND, or --file <file>');
  return sourceOfBackend({
    url: checkUrl(url),
    dialect: options.dialect,
    headers: readHeaders(options.headersFile, environment),
    timeoutMs,
  });
}

function sourceOfBackend(backend: Backend): TraceSource {
  const losses = new Map<string, TraceLoss>();
  return {
    name: new URL(backend.url).host,
    grows: true,
    async read(traceId) {
      const { spans, loss } = await readTraceAnswer(backend, traceId);
      losses.set(traceId, loss);
      return spans;
    },
    lossOf: (traceId) => losses.get(traceId) ?? noLoss,
    list: (of) => listTraces(backend, of),
  };
}

function sourceOfFile(path: string, { spans, loss }: TraceFile): TraceSource {
  const byTrace = Map.groupBy(spans, (span) => span.traceId);
  const [only, ...more] = byTrace.keys();
  return {
    name: path === '-' ? 'what came on stdin' : path,
    grows: false,
    read: async (traceId) => byTrace.get(traceId) ?? [],
    // A file that says so is an answer, and of one trace.
    lossOf: (traceId) => (byTrace.has(traceId) ? loss : noLoss),
    list: async () => {
      throw new UsageError('a file lists no traces; give the trace id');
    },
    ...(only !== undefined && more.length === 0 && { only }),
  };
}

function checkUrl(url: string): string {
  const parsed = URL.parse(url);
  if (parsed === null || !['http:', 'https:'].includes(parsed.protocol))
    throw new UsageError('the backend is not a URL of http or https');
  if (parsed.username !== '' || parsed.password !== '')
    throw new UsageError('the URL of the backend holds credentials: give them as a header (KEYTRAIL_TRACE_HEADERS)');
  if (parsed.search !== '' || parsed.hash !== '')
    throw new UsageError('the URL of the backend is that below which its API is, without a query');
  return url;
}
