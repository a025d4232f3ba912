import { readJaegerSpans } from './jaeger.ts';
import { MalformedTrace } from './malformed.ts';
import { readOtlpSpans } from './otlp.ts';
import type { TraceSpan } from './span.ts';
import { readStoredSpan, readStoredSpans } from './stored.ts';

/** Spans that one body may hold; a trace of more is no trace of a request. */
export const maxSpans = 100_000;

const known =
  'OTLP/JSON (resourceSpans), a trace of Tempo (batches, trace), of Jaeger (data, result), or of the local store (spans)';

/** The spans of a body by its shape: OTLP/JSON, and what Tempo, Jaeger (its API, its v3 API) and the local store answer. Throws MalformedTrace. */
export function readTraceBody(body: unknown): TraceSpan[] {
  const spans = readByShape(body);
  if (spans.length > maxSpans)
    throw new MalformedTrace('a trace', `it has ${spans.length} spans; at most ${maxSpans} are read`);
  return spans;
}

function readByShape(body: unknown): TraceSpan[] {
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw new MalformedTrace('a trace', `body is not an object; known are ${known}`);
  if ('resourceSpans' in body || 'batches' in body) return readOtlpSpans(body);
  // Tempo's v2 answers {"trace": null} or none at all for what it does not have.
  if ('trace' in body) return isEmpty(body.trace) ? [] : readOtlpSpans(body.trace);
  if ('result' in body) return isEmpty(body.result) ? [] : readOtlpSpans(body.result);
  if ('data' in body) return readJaegerSpans(body);
  if ('spans' in body) return readStoredSpans(body);
  if ('traceId' in body && 'startMs' in body) return [readStoredSpan(body, 'line')];
  throw new MalformedTrace(
    'a trace',
    `its fields are ${Object.keys(body).slice(0, 5).join(', ') || 'none'}; known are ${known}`,
  );
}

function isEmpty(value: unknown): boolean {
  return value === null || (typeof value === 'object' && Object.keys(value).length === 0);
}

/** As readTraceBody, of text: one JSON value, or one per line, as the collector's file exporter and Jaeger's v3 API write. Throws MalformedTrace. */
export function readTraceText(text: string): TraceSpan[] {
  const trimmed = text.replace(/^\uFEFF/, '').trim();
  if (trimmed === '') throw new MalformedTrace('JSON', 'it is empty');
  const whole = parse(trimmed);
  if (whole !== undefined) return readTraceBody(whole.value);
  const lines = trimmed.split('\n').filter((line) => line.trim() !== '');
  if (lines.length === 1) throw new MalformedTrace('JSON', startsWith(trimmed));
  const spans: TraceSpan[] = [];
  for (const [at, line] of lines.entries()) {
    const one = parse(line);
    if (one === undefined) throw new MalformedTrace('JSON', `line ${at + 1} is none: ${startsWith(line)}`);
    for (const span of readTraceBody(one.value)) spans.push(span);
    if (spans.length > maxSpans) throw new MalformedTrace('a trace', `it has more than ${maxSpans} spans`);
  }
  return spans;
}

function parse(text: string): { readonly value: unknown } | undefined {
  try {
    return { value: JSON.parse(text) };
  } catch {
    return undefined;
  }
}

function startsWith(text: string): string {
  return `it starts with ${JSON.stringify(text.slice(0, 40))}`;
}
