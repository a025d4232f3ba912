import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import type { Attributes } from '@opentelemetry/api';
import { context, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import type { Resource } from '@opentelemetry/resources';
import { resourceFromAttributes } from '@opentelemetry/resources';
import type { DestinationStream, Logger } from 'pino';
import { resourceAttr } from './attributes.ts';
import type { BuildIdentity } from './build.ts';
import { buildIdentity } from './build.ts';
import { report } from './instruments.ts';
import { LocalParts } from './local-parts.ts';
import { createLog } from './log.ts';
import { metricAttr } from './metric-registry.ts';
import { counted, exportMetrics, metricDeliveries, stopMetrics, switchMetrics } from './metrics.ts';
import { setPseudonymKey } from './pseudonym.ts';
import { readableSpan } from './readable-span.ts';
import { Recorder } from './recorder.ts';
import type { TelemetryConfig } from './settings.ts';
import type { Deliveries, SendSpans } from './span-queue.ts';
import { SpanQueue } from './span-queue.ts';
import { record } from './spans.ts';

export interface Telemetry {
  readonly log: Logger;
  readonly build: BuildIdentity;
  /** Distinguishes replicas: `service.instance.id` of its traces. */
  readonly instance: string;
  /** How telemetry itself gets out. */
  arrivals(): TelemetryArrivals;
  /** Resolves when the spans that are certain to be exported have been sent, or given up. */
  flush(): Promise<void>;
  /** Sends what waits. Later spans are no-ops. Safe to call twice. */
  shutdown(): Promise<void>;
}

/** How the spans and metrics of a process get out of it. */
export interface TelemetryArrivals {
  /** False where nobody said where to. */
  readonly exporting: boolean;
  readonly spans: Deliveries & {
    readonly exported: number;
    /** Lost because the receiver did not take them. */
    readonly failed: number;
    /** Lost because there was no room: in the queue, or where they wait for their root. */
    readonly overflowed: number;
  };
  readonly metrics: Deliveries;
}

export interface TelemetryOptions {
  /** Name of the service, such as `session`. */
  readonly service: string;
  readonly config: TelemetryConfig;
  /** Distinguishes replicas; random by default. */
  readonly instance?: string;
  /** Where log lines go; stdout by default. */
  readonly logTo?: DestinationStream;
}

const shutdownMs = 2_000;
const developmentPseudonymKey = 'keytrail-development-pseudonyms';

interface Signals {
  arrivals(): TelemetryArrivals;
  flush(): Promise<void>;
  stop(): Promise<void>;
}

let running: { users: number; readonly signals: Signals } | undefined;

/**
 * Starts logs, traces and metrics of this process. Several services in one process, as in tests, share the first one's traces
 * and metrics; the last to shut down stops them. Throws when a production process has no pseudonym key.
 */
export function startTelemetry({ service, config, instance = randomUUID(), logTo }: TelemetryOptions): Telemetry {
  setPseudonymKey(pseudonymKey(config));
  const { revision, image, supervisor } = config;
  const build = buildIdentity(service, { revision, image, supervisor });
  const log = createLog(config, build, instance, logTo);
  tellIdentity(log, build);
  running ??= { users: 0, signals: startSignals(build, config, instance) };
  running.users += 1;
  const shared = running;
  let stopped = false;
  return {
    log,
    build,
    instance,
    arrivals: () => shared.signals.arrivals(),
    flush: () => shared.signals.flush(),
    async shutdown() {
      if (stopped) return;
      stopped = true;
      shared.users -= 1;
      if (shared.users > 0) return;
      if (running === shared) running = undefined;
      await shared.signals.stop();
    },
  };
}

/** The first line of a log says what wrote the others. */
function tellIdentity(log: Logger, build: BuildIdentity): void {
  const { version, revision, sourcesDigest, newestMigration, contractDigest, nodeVersion } = build;
  const { startedAt, image, supervisor, restartAdvice } = build;
  log.info(
    {
      version,
      revision,
      sources_digest: sourcesDigest,
      newest_migration: newestMigration,
      contract_digest: contractDigest,
      node_version: nodeVersion,
      started_at: startedAt,
      image,
      supervisor,
      restart_advice: restartAdvice,
    },
    `${build.service} ${build.writerBuild} starts`,
  );
}

function pseudonymKey(config: TelemetryConfig): string {
  if (config.pseudonymKey !== undefined) return config.pseudonymKey;
  if (config.environment !== 'development') throw new Error('KEYTRAIL_PSEUDONYM_KEY is required outside development');
  return developmentPseudonymKey;
}

/** What a process without telemetry has in its place. */
function noSignals(): Signals {
  switchMetrics('off');
  const none = { exported: 0, failed: 0, overflowed: 0 };
  return {
    arrivals: () => ({ exporting: false, spans: none, metrics: {} }),
    flush: async () => {},
    stop: async () => switchMetrics('on'),
  };
}

function startSignals(build: BuildIdentity, config: TelemetryConfig, instance: string): Signals {
  if (config.telemetry === 'off') return noSignals();
  const resource = resourceFromAttributes(resourceAttributes(build, config, instance));
  const exporter = config.otlpUrl === undefined ? undefined : traceExporter(config.otlpUrl);
  const queue = new SpanQueue(exporter && sendThrough(exporter, resource, build));
  const parts = new LocalParts(queue, { slowMs: config.slowMs });
  const recorder = new Recorder(parts, { ratio: config.traceRatio });
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  trace.setGlobalTracerProvider(recorder);
  record(recorder);
  if (config.otlpUrl !== undefined) exportMetrics(config.otlpUrl, resource, config.metricsExportMs);
  const forgetMeasures = measure(build, parts, queue);
  const sendTheRest = () => Promise.all([queue.close().then(() => exporter?.shutdown()), stopMetrics()]);
  return {
    arrivals: () => ({
      exporting: exporter !== undefined,
      spans: {
        ...queue.deliveries,
        exported: queue.exported,
        failed: queue.failed,
        overflowed: queue.overflowed + parts.overflowed,
      },
      metrics: { ...metricDeliveries },
    }),
    flush: () => queue.flush(),
    async stop() {
      record(undefined);
      trace.disable();
      context.disable();
      parts.forgetAll();
      // A receiver that is away must not use up the time in which a service has to be gone.
      await Promise.race([sendTheRest(), pause(shutdownMs, undefined, { ref: false })]);
      forgetMeasures();
    },
  };
}

function traceExporter(otlpUrl: string): OTLPTraceExporter {
  return new OTLPTraceExporter({ url: `${otlpUrl.replace(/\/$/, '')}/v1/traces`, timeoutMillis: 5_000 });
}

function sendThrough(exporter: OTLPTraceExporter, resource: Resource, build: BuildIdentity): SendSpans {
  const scope = { name: 'keytrail', version: build.version };
  return (spans) =>
    new Promise((resolve) => {
      exporter.export(
        spans.map((span) => readableSpan(span, resource, scope)),
        (result) => resolve(result.code === 0),
      );
    });
}

function resourceAttributes(build: BuildIdentity, config: TelemetryConfig, instance: string): Attributes {
  return {
    [resourceAttr.namespace]: 'keytrail',
    [resourceAttr.service]: build.service,
    [resourceAttr.version]: build.version,
    [resourceAttr.instance]: instance,
    [resourceAttr.environment]: config.environment,
    [resourceAttr.revision]: build.revision,
    [resourceAttr.host]: build.host,
    [resourceAttr.pid]: build.pid,
    [resourceAttr.runtime]: 'nodejs',
    [resourceAttr.runtimeVersion]: build.nodeVersion,
    [resourceAttr.startedAt]: build.startedAt,
    [resourceAttr.build]: build.writerBuild,
    [resourceAttr.sourcesDigest]: build.sourcesDigest,
    [resourceAttr.newestMigration]: build.newestMigration,
    [resourceAttr.contractDigest]: build.contractDigest,
    [resourceAttr.supervisor]: build.supervisor,
    ...(build.image !== '' && { [resourceAttr.image]: build.image }),
  };
}

function measure(build: BuildIdentity, parts: LocalParts, queue: SpanQueue): () => void {
  return report(['buildInfo', 'spans', 'spansWaiting', 'metricExports'], (observe) => {
    observe('buildInfo', 1, {
      service: build.service,
      version: build.version,
      revision: build.revision,
      build: build.writerBuild,
      sources_digest: build.sourcesDigest,
      newest_migration: build.newestMigration,
      contract_digest: build.contractDigest,
      node_version: build.nodeVersion,
      started_at: build.startedAt,
      host: build.host,
      image: build.image,
      supervisor: build.supervisor,
    });
    for (const [fate, spans] of Object.entries({
      exported: queue.exported,
      unsampled: parts.unsampled,
      buffer_full: parts.overflowed,
      queue_full: queue.overflowed,
      export_failed: queue.failed,
    }))
      observe('spans', spans, { [metricAttr.spanFate]: fate });
    observe('spansWaiting', parts.waiting, { [metricAttr.spanWaitsFor]: 'root' });
    observe('spansWaiting', queue.length, { [metricAttr.spanWaitsFor]: 'export' });
    for (const [outcome, exports] of Object.entries(counted))
      observe('metricExports', exports, { [metricAttr.exportOutcome]: outcome });
  });
}
