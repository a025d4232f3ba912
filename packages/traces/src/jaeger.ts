import { BodyReader, type Fields, MalformedTrace } from './malformed.ts';
import type { SpanKindName, TraceAttributes, TraceLink, TraceSpan } from './span.ts';

const read = new BodyReader((problem) => new MalformedTrace("an answer of Jaeger's query API", problem));
const kinds: readonly string[] = ['internal', 'server', 'client', 'producer', 'consumer'];
/** What Jaeger makes tags of and OTLP does not call attributes. */
const ownTags = new Set([
  'span.kind',
  'error',
  'otel.status_code',
  'otel.status_description',
  'otel.scope.name',
  'otel.scope.version',
  'internal.span.format',
  'w3c.tracestate',
]);

/**
 * The spans of an answer of Jaeger's query API (`/api/traces/<id>`, which is also what its UI downloads): `data[].spans[]` with `references`, `tags`,
 * times in microseconds, and `processes` by id. Throws MalformedTrace.
 */
export function readJaegerSpans(body: unknown): TraceSpan[] {
  return read
    .list(read.fields(body, 'body').data ?? [], 'data')
    .flatMap((item, at) => readTrace(read.fields(item, `data[${at}]`), `data[${at}]`));
}

function readTrace(trace: Fields, place: string): TraceSpan[] {
  const processes = read.fields(trace.processes ?? {}, `${place}.processes`);
  return read.list(trace.spans ?? [], `${place}.spans`).map((item, at) => {
    const below = `${place}.spans[${at}]`;
    const span = read.fields(item, below);
    const process = processes[String(span.processID)];
    if (process === undefined) throw read.wrong(`${below}.processID names no process`);
    return readSpan(span, read.fields(process, `${place}.processes`), below);
  });
}

function readSpan(span: Fields, process: Fields, place: string): TraceSpan {
  const tags = readTags(span.tags, `${place}.tags`);
  const said = readTags(process.tags, `${place}.process.tags`);
  const traceId = traceIdOf(span.traceID, `${place}.traceID`);
  const references = readReferences(span, place);
  const own = references.filter(({ link }) => link.traceId === traceId);
  const childOf = own.find(({ type }) => type === 'CHILD_OF');
  // Of a span that links to its own parent, Jaeger keeps the link alone.
  const parent = childOf ?? own[0];
  const kind = String(tags['span.kind'] ?? 'internal');
  const startMs = read.number(span.startTime, `${place}.startTime`) / 1_000;
  const failed = tags.error === true || tags.error === 'true' || tags['otel.status_code'] === 'ERROR';
  return {
    traceId,
    spanId: spanIdOf(span.spanID, `${place}.spanID`),
    parentSpanId: parent?.link.spanId ?? '',
    name: String(span.operationName ?? ''),
    kind: kinds.includes(kind) ? (kind as SpanKindName) : 'internal',
    service: String(process.serviceName ?? 'unknown'),
    instance: String(said['service.instance.id'] ?? ''),
    build: String(said['keytrail.build'] ?? ''),
    startMs,
    durationMs: Math.max(0, read.number(span.duration, `${place}.duration`) / 1_000),
    status: failed ? 'error' : tags['otel.status_code'] === 'OK' ? 'ok' : 'unset',
    statusMessage: String(tags['otel.status_description'] ?? ''),
    attributes: Object.fromEntries(Object.entries(tags).filter(([key]) => !ownTags.has(key))),
    events: read.list(span.logs ?? [], `${place}.logs`).map((item, at) => {
      const log = read.fields(item, `${place}.logs[${at}]`);
      const { event, ...attributes } = readTags(log.fields, `${place}.logs[${at}].fields`);
      return {
        name: String(event ?? ''),
        atMs: read.number(log.timestamp, `${place}.logs[${at}].timestamp`) / 1_000,
        attributes,
      };
    }),
    links: references.filter((each) => each !== childOf).map(({ link }) => link),
  };
}

function readReferences(span: Fields, place: string): { readonly type: string; readonly link: TraceLink }[] {
  return read.list(span.references ?? [], `${place}.references`).map((item, at) => {
    const below = `${place}.references[${at}]`;
    const { refType, traceID, spanID } = read.fields(item, below);
    return {
      type: String(refType),
      link: {
        traceId: traceIdOf(traceID, `${below}.traceID`),
        spanId: spanIdOf(spanID, `${below}.spanID`),
        attributes: {},
      },
    };
  });
}

function readTags(tags: unknown, place: string): TraceAttributes {
  return Object.fromEntries(
    read.list(tags ?? [], place).map((item, at) => {
      const { key, type, value } = read.fields(item, `${place}[${at}]`);
      return [String(key), type === 'int64' || type === 'float64' ? Number(value) : value];
    }),
  );
}

/** Jaeger may leave out leading zeros. */
function traceIdOf(id: unknown, place: string): string {
  return read.id(typeof id === 'string' ? id.padStart(32, '0') : id, 16, place);
}

function spanIdOf(id: unknown, place: string): string {
  return read.id(typeof id === 'string' ? id.padStart(16, '0') : id, 8, place);
}
