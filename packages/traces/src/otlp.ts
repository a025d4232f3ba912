import type { SpanKindName, TraceAttributes, TraceSpan } from './span.ts';

/** Thrown when a body is not an OTLP/JSON trace request. */
export class NotOtlp extends Error {
  constructor(problem: string) {
    super(`not an OTLP/JSON trace request: ${problem}`);
    this.name = 'NotOtlp';
  }
}

const kinds: readonly SpanKindName[] = ['internal', 'internal', 'server', 'client', 'producer', 'consumer'];
const statuses = ['unset', 'ok', 'error'] as const;

/** The spans of an ExportTraceServiceRequest in OTLP/JSON (opentelemetry-proto, JSON encoding). Throws NotOtlp. */
export function readOtlpSpans(body: unknown): TraceSpan[] {
  return list(record(body, 'body').resourceSpans, 'resourceSpans').flatMap((resourceSpans) => {
    const { resource, scopeSpans } = record(resourceSpans, 'resourceSpans');
    const process = resource === undefined ? {} : readAttributes(record(resource, 'resource').attributes);
    const service = String(process['service.name'] ?? 'unknown');
    const instance = String(process['service.instance.id'] ?? '');
    return list(scopeSpans, 'scopeSpans').flatMap((scope) =>
      list(record(scope, 'scopeSpans').spans, 'spans').map((span) => readSpan(record(span, 'span'), service, instance)),
    );
  });
}

function readSpan(span: Record<string, unknown>, service: string, instance: string): TraceSpan {
  const start = readNanos(span.startTimeUnixNano);
  const status = span.status === undefined ? {} : record(span.status, 'status');
  return {
    traceId: readId(span.traceId, 32, 'traceId'),
    spanId: readId(span.spanId, 16, 'spanId'),
    parentSpanId: span.parentSpanId ? readId(span.parentSpanId, 16, 'parentSpanId') : '',
    name: String(span.name ?? ''),
    kind: kinds[Number(span.kind ?? 0)] ?? 'internal',
    service,
    instance,
    startMs: milliseconds(start),
    durationMs: milliseconds(readNanos(span.endTimeUnixNano) - start),
    status: statuses[Number(status.code ?? 0)] ?? 'unset',
    statusMessage: String(status.message ?? ''),
    attributes: readAttributes(span.attributes),
    events: list(span.events ?? [], 'events').map((item) => {
      const event = record(item, 'event');
      return {
        name: String(event.name ?? ''),
        atMs: milliseconds(readNanos(event.timeUnixNano)),
        attributes: readAttributes(event.attributes),
      };
    }),
    links: list(span.links ?? [], 'links').map((item) => {
      const link = record(item, 'link');
      return {
        traceId: readId(link.traceId, 32, 'link.traceId'),
        spanId: readId(link.spanId, 16, 'link.spanId'),
        attributes: readAttributes(link.attributes),
      };
    }),
  };
}

function readAttributes(attributes: unknown): TraceAttributes {
  return Object.fromEntries(
    list(attributes ?? [], 'attributes').map((item) => {
      const { key, value } = record(item, 'attribute');
      return [String(key), readValue(value)];
    }),
  );
}

function readValue(value: unknown): unknown {
  if (value === undefined || value === null) return null;
  const [kind, content] = Object.entries(record(value, 'value'))[0] ?? ['', null];
  switch (kind) {
    case 'intValue':
    case 'doubleValue':
      return Number(content);
    case 'arrayValue':
      return list(record(content, 'arrayValue').values ?? [], 'values').map(readValue);
    case 'kvlistValue':
      return readAttributes(record(content, 'kvlistValue').values);
    default:
      return content;
  }
}

function readId(id: unknown, digits: number, name: string): string {
  if (typeof id !== 'string' || id.length !== digits || !/^[0-9a-f]+$/i.test(id))
    throw new NotOtlp(`${name} is not ${digits} hex digits`);
  return id.toLowerCase();
}

function readNanos(value: unknown): bigint {
  if (typeof value === 'number' && Number.isFinite(value)) return BigInt(Math.trunc(value));
  if (typeof value === 'string' && /^\d{1,20}$/.test(value)) return BigInt(value);
  throw new NotOtlp('a time is not a number of nanoseconds');
}

function milliseconds(nanos: bigint): number {
  return Number(nanos / 1_000n) / 1_000;
}

function record(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new NotOtlp(`${name} is not an object`);
  return value as Record<string, unknown>;
}

function list(value: unknown, name: string): unknown[] {
  if (!Array.isArray(value)) throw new NotOtlp(`${name} is not a list`);
  return value;
}
