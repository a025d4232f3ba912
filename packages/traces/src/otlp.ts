import { BodyReader, type Fields, MalformedTrace } from './malformed.ts';
import type { SpanKindName, TraceAttributes, TraceSpan } from './span.ts';

/** Thrown when a body is not OTLP/JSON. */
export class NotOtlp extends MalformedTrace {
  constructor(problem: string) {
    super('an OTLP/JSON trace request', problem);
    this.name = 'NotOtlp';
  }
}

const read = new BodyReader((problem) => new NotOtlp(problem));
const kinds: readonly SpanKindName[] = ['internal', 'internal', 'server', 'client', 'producer', 'consumer'];
const kindNames = ['UNSPECIFIED', 'INTERNAL', 'SERVER', 'CLIENT', 'PRODUCER', 'CONSUMER'];
const statuses = ['unset', 'ok', 'error'] as const;
const statusNames = ['UNSET', 'OK', 'ERROR'];

/**
 * The spans of OTLP/JSON (opentelemetry-proto, JSON encoding): an ExportTraceServiceRequest or TracesData, also as Grafana Tempo writes them
 * (`batches`, names of enums, ids in base64) and as Jaeger's query API v3 does (within `result`). Throws NotOtlp.
 */
export function readOtlpSpans(body: unknown): TraceSpan[] {
  const { resourceSpans, batches } = read.fields(body, 'body');
  const name = resourceSpans === undefined && batches !== undefined ? 'batches' : 'resourceSpans';
  return read.list(resourceSpans ?? batches, name).flatMap((item, at) => readResource(item, `${name}[${at}]`));
}

function readResource(item: unknown, place: string): TraceSpan[] {
  const { resource, scopeSpans, instrumentationLibrarySpans } = read.fields(item, place);
  const said =
    resource === undefined
      ? {}
      : readAttributes(read.fields(resource, `${place}.resource`).attributes, `${place}.resource.attributes`);
  const process = {
    service: text(said['service.name'], 'unknown'),
    instance: text(said['service.instance.id'], ''),
    build: text(said['keytrail.build'], ''),
  };
  return read.list(scopeSpans ?? instrumentationLibrarySpans ?? [], `${place}.scopeSpans`).flatMap((scope, at) => {
    const below = `${place}.scopeSpans[${at}]`;
    return read
      .list(read.fields(scope, below).spans ?? [], `${below}.spans`)
      .map((span, index) =>
        readSpan(read.fields(span, `${below}.spans[${index}]`), process, `${below}.spans[${index}]`),
      );
  });
}

function readSpan(span: Fields, process: Pick<TraceSpan, 'service' | 'instance' | 'build'>, place: string): TraceSpan {
  const start = read.nanos(span.startTimeUnixNano, `${place}.startTimeUnixNano`);
  const end = read.nanos(span.endTimeUnixNano, `${place}.endTimeUnixNano`);
  const status = span.status === undefined ? {} : read.fields(span.status, `${place}.status`);
  return {
    traceId: read.id(span.traceId, 16, `${place}.traceId`),
    spanId: read.id(span.spanId, 8, `${place}.spanId`),
    parentSpanId: readParent(span.parentSpanId, `${place}.parentSpanId`),
    name: text(span.name, ''),
    kind: kinds[enumOf(span.kind, 'SPAN_KIND_', kindNames)] ?? 'internal',
    ...process,
    startMs: milliseconds(start),
    durationMs: Math.max(0, milliseconds(end - start)),
    status: statuses[enumOf(status.code, 'STATUS_CODE_', statusNames)] ?? 'unset',
    statusMessage: text(status.message, ''),
    attributes: readAttributes(span.attributes, `${place}.attributes`),
    events: read.list(span.events ?? [], `${place}.events`).map((item, at) => {
      const event = read.fields(item, `${place}.events[${at}]`);
      return {
        name: text(event.name, ''),
        atMs: milliseconds(read.nanos(event.timeUnixNano, `${place}.events[${at}].timeUnixNano`)),
        attributes: readAttributes(event.attributes, `${place}.events[${at}].attributes`),
      };
    }),
    links: read.list(span.links ?? [], `${place}.links`).map((item, at) => {
      const link = read.fields(item, `${place}.links[${at}]`);
      return {
        traceId: read.id(link.traceId, 16, `${place}.links[${at}].traceId`),
        spanId: read.id(link.spanId, 8, `${place}.links[${at}].spanId`),
        attributes: readAttributes(link.attributes, `${place}.links[${at}].attributes`),
      };
    }),
  };
}

/** Some write the absence of a parent as zeros. */
function readParent(id: unknown, place: string): string {
  if (!id) return '';
  const parent = read.id(id, 8, place);
  return parent === '0000000000000000' ? '' : parent;
}

function readAttributes(attributes: unknown, place: string): TraceAttributes {
  return Object.fromEntries(
    read.list(attributes ?? [], place).map((item, at) => {
      const { key, value } = read.fields(item, `${place}[${at}]`);
      return [String(key), readValue(value, `${place}[${at}].value`)];
    }),
  );
}

function readValue(value: unknown, place: string): unknown {
  if (value === undefined || value === null) return null;
  const [kind, content] = Object.entries(read.fields(value, place))[0] ?? ['', null];
  switch (kind) {
    case 'intValue':
    case 'doubleValue':
      return Number(content);
    case 'arrayValue':
      return read.list(read.fields(content, place).values ?? [], place).map((one) => readValue(one, place));
    case 'kvlistValue':
      return readAttributes(read.fields(content, place).values, place);
    default:
      return content;
  }
}

/** An enum is its number, or, as some backends write it, its name. */
function enumOf(value: unknown, prefix: string, names: readonly string[]): number {
  if (typeof value !== 'string') return Number(value ?? 0);
  const named = names.indexOf(value.startsWith(prefix) ? value.slice(prefix.length) : value);
  return named === -1 ? Number(value) : named;
}

function text(value: unknown, otherwise: string): string {
  return value === undefined || value === null ? otherwise : String(value);
}

function milliseconds(nanos: bigint): number {
  return Number(nanos / 1_000n) / 1_000;
}
