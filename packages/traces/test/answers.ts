import type { TraceSpan } from '../src/index.ts';

const kinds = { internal: 1, server: 2, client: 3, producer: 4, consumer: 5 } as const;
const kindNames = ['UNSPECIFIED', 'INTERNAL', 'SERVER', 'CLIENT', 'PRODUCER', 'CONSUMER'];
const base64 = (hex: string) => Buffer.from(hex, 'hex').toString('base64');
const nanos = (ms: number) => `${BigInt(Math.round(ms * 1_000)) * 1_000n}`;

function attributesOf(attributes: Readonly<Record<string, unknown>>) {
  return Object.entries(attributes).map(([key, value]) => ({
    key,
    value:
      typeof value === 'boolean'
        ? { boolValue: value }
        : typeof value === 'number'
          ? { intValue: String(value) }
          : { stringValue: String(value) },
  }));
}

interface Writing {
  readonly id: (hex: string) => string;
  readonly kind: (kind: TraceSpan['kind']) => unknown;
  readonly status: (status: TraceSpan['status']) => unknown;
}

function otlpSpans(spans: readonly TraceSpan[], { id, kind, status }: Writing) {
  return spans.map((span) => ({
    resource: {
      attributes: attributesOf({
        'service.name': span.service,
        'service.instance.id': span.instance,
        'keytrail.build': span.build,
      }),
    },
    scopeSpans: [
      {
        scope: { name: 'keytrail' },
        spans: [
          {
            traceId: id(span.traceId),
            spanId: id(span.spanId),
            ...(span.parentSpanId !== '' && { parentSpanId: id(span.parentSpanId) }),
            name: span.name,
            kind: kind(span.kind),
            startTimeUnixNano: nanos(span.startMs),
            endTimeUnixNano: nanos(span.startMs + span.durationMs),
            attributes: attributesOf(span.attributes),
            links: span.links.map((link) => ({ traceId: id(link.traceId), spanId: id(link.spanId) })),
            status: { code: status(span.status), message: span.statusMessage },
          },
        ],
      },
    ],
  }));
}

const plain: Writing = {
  id: (hex) => hex,
  kind: (kind) => kinds[kind],
  status: (status) => ['unset', 'ok', 'error'].indexOf(status),
};
/** Grafana Tempo writes ids in base64 and enums by name. */
const named: Writing = {
  id: base64,
  kind: (kind) => `SPAN_KIND_${kindNames[kinds[kind]]}`,
  status: (status) => `STATUS_CODE_${status.toUpperCase()}`,
};

/** As the exporter sends it, and the collector's file exporter writes it. */
export function asOtlp(spans: readonly TraceSpan[]) {
  return { resourceSpans: otlpSpans(spans, plain) };
}

/** As Tempo answers `/api/traces/<id>`. */
export function asTempo(spans: readonly TraceSpan[]) {
  return { batches: otlpSpans(spans, named) };
}

/** As Tempo answers `/api/v2/traces/<id>`. */
export function asTempoV2(spans: readonly TraceSpan[]) {
  return { trace: { resourceSpans: otlpSpans(spans, named) }, metrics: {} };
}

/** As Jaeger answers `/api/v3/traces/<id>`: a stream of such objects. */
export function asJaegerV3(spans: readonly TraceSpan[]) {
  return { result: { resourceSpans: otlpSpans(spans, plain) } };
}

/** As Jaeger answers `/api/traces/<id>`. */
export function asJaeger(spans: readonly TraceSpan[]) {
  const processes = new Map(spans.map((span) => [`${span.service} ${span.build}`, span]));
  const ids = [...processes.keys()];
  const tag = (key: string, value: unknown) => ({
    key,
    type: typeof value === 'boolean' ? 'bool' : typeof value === 'number' ? 'int64' : 'string',
    value,
  });
  return {
    data: [
      {
        traceID: spans[0]?.traceId,
        spans: spans.map((span) => ({
          traceID: span.traceId,
          spanID: span.spanId,
          operationName: span.name,
          references: [
            ...(span.parentSpanId === ''
              ? []
              : [{ refType: 'CHILD_OF', traceID: span.traceId, spanID: span.parentSpanId }]),
            ...span.links.map((link) => ({ refType: 'FOLLOWS_FROM', traceID: link.traceId, spanID: link.spanId })),
          ],
          startTime: Math.round(span.startMs * 1_000),
          duration: Math.round(span.durationMs * 1_000),
          tags: [
            ...Object.entries(span.attributes).map(([key, value]) => tag(key, value)),
            tag('span.kind', span.kind),
            tag('otel.scope.name', 'keytrail'),
            tag('internal.span.format', 'otlp'),
            ...(span.status === 'error'
              ? [
                  tag('error', true),
                  tag('otel.status_code', 'ERROR'),
                  tag('otel.status_description', span.statusMessage),
                ]
              : []),
          ],
          logs: [],
          processID: `p${ids.indexOf(`${span.service} ${span.build}`) + 1}`,
          warnings: null,
        })),
        processes: Object.fromEntries(
          [...processes.values()].map((span, at) => [
            `p${at + 1}`,
            {
              serviceName: span.service,
              tags: [tag('service.instance.id', span.instance), tag('keytrail.build', span.build)],
            },
          ]),
        ),
        warnings: null,
      },
    ],
    total: 0,
    limit: 0,
    offset: 0,
    errors: null,
  };
}
