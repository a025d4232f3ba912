import type { Attributes, SpanContext } from '@opentelemetry/api';
import { TraceFlags } from '@opentelemetry/api';
import type { Resource } from '@opentelemetry/resources';
import type { ReadableSpan } from '@opentelemetry/sdk-trace';
import { hrTime } from './clock.ts';
import type { RecordedSpan } from './recorded-span.ts';

const maxTextLength = 4_096;

/** The form of a span that OpenTelemetry's exporters take. */
export function readableSpan(
  span: RecordedSpan,
  resource: Resource,
  scope: ReadableSpan['instrumentationScope'],
): ReadableSpan {
  const context: SpanContext = { traceId: span.traceId, spanId: span.spanId, traceFlags: TraceFlags.SAMPLED };
  return {
    name: span.name,
    kind: span.kind,
    spanContext: () => context,
    ...(span.parent && { parentSpanContext: span.parent }),
    startTime: hrTime(span.startMs),
    endTime: hrTime(span.endMs),
    duration: hrTime(span.endMs - span.startMs),
    ended: true,
    status: span.status,
    attributes: presentable(span.attributes),
    links: span.links.map((link) => ({ ...link, attributes: presentable(link.attributes ?? {}) })),
    events: span.events.map(({ name, atMs, attributes }) => ({
      name,
      time: hrTime(atMs),
      attributes: presentable(attributes),
    })),
    resource,
    instrumentationScope: scope,
    droppedAttributesCount: 0,
    droppedEventsCount: 0,
    droppedLinksCount: 0,
  };
}

function presentable(attributes: Attributes): Attributes {
  const presented: Attributes = {};
  for (const key of Object.keys(attributes)) {
    const value = attributes[key];
    if (value === undefined || value === null) continue;
    presented[key] = typeof value === 'string' && value.length > maxTextLength ? value.slice(0, maxTextLength) : value;
  }
  return presented;
}
