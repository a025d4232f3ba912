import { BodyReader, MalformedTrace } from './malformed.ts';
import type { SpanKindName, TraceAttributes, TraceSpan } from './span.ts';

const read = new BodyReader((problem) => new MalformedTrace('an answer of the trace store', problem));
const kinds: readonly string[] = ['internal', 'server', 'client', 'producer', 'consumer'];
const statuses: readonly string[] = ['unset', 'ok', 'error'];

/** The spans of `GET /traces/<id>` of the trace store, or of lines of its journal. Throws MalformedTrace. */
export function readStoredSpans(body: unknown): TraceSpan[] {
  const { spans } = read.fields(body, 'body');
  return read.list(spans, 'spans').map((item, at) => readStoredSpan(item, `spans[${at}]`));
}

export function readStoredSpan(item: unknown, place: string): TraceSpan {
  const span = read.fields(item, place);
  const kind = String(span.kind);
  const status = String(span.status);
  if (!kinds.includes(kind)) throw read.wrong(`${place}.kind is no kind of span`);
  if (!statuses.includes(status)) throw read.wrong(`${place}.status is no status`);
  return {
    traceId: read.id(span.traceId, 16, `${place}.traceId`),
    spanId: read.id(span.spanId, 8, `${place}.spanId`),
    parentSpanId: span.parentSpanId === '' ? '' : read.id(span.parentSpanId, 8, `${place}.parentSpanId`),
    name: String(span.name ?? ''),
    kind: kind as SpanKindName,
    service: String(span.service ?? 'unknown'),
    instance: String(span.instance ?? ''),
    build: String(span.build ?? ''),
    startMs: read.number(span.startMs, `${place}.startMs`),
    durationMs: Math.max(0, read.number(span.durationMs, `${place}.durationMs`)),
    status: status as TraceSpan['status'],
    statusMessage: String(span.statusMessage ?? ''),
    attributes: attributes(span.attributes, `${place}.attributes`),
    events: read.list(span.events ?? [], `${place}.events`).map((each, at) => {
      const event = read.fields(each, `${place}.events[${at}]`);
      return {
        name: String(event.name ?? ''),
        atMs: read.number(event.atMs, `${place}.events[${at}].atMs`),
        attributes: attributes(event.attributes, `${place}.events[${at}].attributes`),
      };
    }),
    links: read.list(span.links ?? [], `${place}.links`).map((each, at) => {
      const link = read.fields(each, `${place}.links[${at}]`);
      return {
        traceId: read.id(link.traceId, 16, `${place}.links[${at}].traceId`),
        spanId: read.id(link.spanId, 8, `${place}.links[${at}].spanId`),
        attributes: attributes(link.attributes, `${place}.links[${at}].attributes`),
      };
    }),
  };
}

function attributes(value: unknown, place: string): TraceAttributes {
  return read.fields(value ?? {}, place);
}
