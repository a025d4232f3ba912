import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { gunzipSync } from 'node:zlib';
import { assembleTrace, readOtlpSpans, type TraceSpan, type TraceTree } from '@keytrail/traces';
import { expectDeclared } from './declared-attributes.ts';

export interface ExportedMetric {
  readonly name: string;
  readonly service: string;
  readonly points: readonly { readonly value: number; readonly attributes: Readonly<Record<string, unknown>> }[];
}

/** Receives whatever processes export over OTLP/HTTP, and keeps all of it. Disposal throws when an attribute came that is not declared. */
export interface OtlpSink extends AsyncDisposable {
  /** For KEYTRAIL_OTLP_URL. */
  readonly url: string;
  /** Each body as it came, with its path. */
  readonly bodies: readonly { readonly path: string; readonly text: string }[];
  spans(): readonly TraceSpan[];
  /** Names of the attributes of all resources. */
  resourceAttributes(): ReadonlySet<string>;
  /** The newest export of each metric of each service. */
  metrics(): readonly ExportedMetric[];
  /** The trace once `complete` says so. Throws with what came of it when that does not come true. */
  trace(traceId: string, complete: (tree: TraceTree) => boolean, timeoutMs?: number): Promise<TraceTree>;
}

export async function startOtlpSink(): Promise<OtlpSink> {
  const bodies: { path: string; text: string }[] = [];
  const spans: TraceSpan[] = [];
  const resources = new Set<string>();
  const metrics = new Map<string, ExportedMetric>();
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const raw = Buffer.concat(chunks);
    const text = (request.headers['content-encoding'] === 'gzip' ? gunzipSync(raw) : raw).toString('utf8');
    const path = request.url ?? '';
    bodies.push({ path, text });
    const body = JSON.parse(text);
    for (const { resource } of [...(body.resourceSpans ?? []), ...(body.resourceMetrics ?? [])])
      for (const { key } of resource?.attributes ?? []) resources.add(key);
    if (path === '/v1/traces') spans.push(...readOtlpSpans(body));
    for (const metric of readMetrics(body)) metrics.set(`${metric.service} ${metric.name}`, metric);
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const ofTrace = (traceId: string) => assembleTrace(spans.filter((span) => span.traceId === traceId));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    bodies,
    spans: () => spans,
    resourceAttributes: () => resources,
    metrics: () => [...metrics.values()],
    async trace(traceId, complete, timeoutMs = 20_000) {
      const endsAt = performance.now() + timeoutMs;
      for (;;) {
        const tree = ofTrace(traceId);
        if (complete(tree)) return tree;
        if (performance.now() > endsAt) {
          const names = tree.spans.map(({ service, name }) => `${service} ${name}`);
          throw new Error(`trace ${traceId} has not become complete: ${names.join(', ')}`);
        }
        await pause(50);
      }
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      expectDeclared(spans, resources);
    },
  };
}

interface OtlpPoint {
  readonly asDouble?: number;
  readonly asInt?: string | number;
  readonly count?: string | number;
  readonly attributes?: readonly { key: string; value: Record<string, unknown> }[];
}

function readMetrics(body: {
  resourceMetrics?: {
    resource?: { attributes?: { key: string; value: { stringValue?: string } }[] };
    scopeMetrics: { metrics: ({ name: string } & Record<string, { dataPoints?: OtlpPoint[] } | string>)[] }[];
  }[];
}): ExportedMetric[] {
  return (body.resourceMetrics ?? []).flatMap(({ resource, scopeMetrics }) => {
    const service = resource?.attributes?.find(({ key }) => key === 'service.name')?.value.stringValue ?? '';
    return scopeMetrics.flatMap(({ metrics }) =>
      metrics.map((metric) => ({
        name: metric.name,
        service,
        points: Object.values(metric).flatMap((part) =>
          typeof part === 'string'
            ? []
            : (part.dataPoints ?? []).map((point) => ({
                value: Number(point.asDouble ?? point.asInt ?? point.count ?? 0),
                attributes: Object.fromEntries(
                  (point.attributes ?? []).map(({ key, value }) => [key, Object.values(value)[0]]),
                ),
              })),
        ),
      })),
    );
  });
}
