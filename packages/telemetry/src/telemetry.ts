import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import type { Attributes, BatchObservableCallback } from '@opentelemetry/api';
import { context, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import type { Resource } from '@opentelemetry/resources';
import { resourceFromAttributes } from '@opentelemetry/resources';
import type { DestinationStream, Logger } from 'pino';
import type { BuildIdentity } from './build.ts';
import { buildIdentity } from './build.ts';
import { LocalParts } from './local-parts.ts';
import { createLog } from './log.ts';
import { exportMetrics, meter, stopMetrics } from './metrics.ts';
import { setPseudonymKey } from './pseudonym.ts';
import { readableSpan } from './readable-span.ts';
import { Recorder } from './recorder.ts';
import type { TelemetryConfig } from './settings.ts';
import type { SendSpans } from './span-queue.ts';
import { SpanQueue } from './span-queue.ts';
import { record } from './spans.ts';

export interface Telemetry {
  readonly log: Logger;
  readonly build: BuildIdentity;
  /** Distinguishes replicas: `service.instance.id` of its traces. */
  readonly instance: string;
  /** Resolves when the spans that are certain to be exported have been sent, or given up. */
  flush(): Promise<void>;
  /** Sends what waits. Later spans are no-ops. Safe to call twice. */
  shutdown(): Promise<void>;
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

function startSignals(build: BuildIdentity, config: TelemetryConfig, instance: string): Signals {
  const resource = resourceFromAttributes(resourceAttributes(build, config, instance));
  const exporter = config.otlpUrl === undefined ? undefined : traceExporter(config.otlpUrl);
  const queue = new SpanQueue(exporter && sendThrough(exporter, resource, build));
  const parts = new LocalParts(queue, { slowMs: config.slowMs });
  const recorder = new Recorder(parts, { ratio: config.traceRatio });
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  trace.setGlobalTracerProvider(recorder);
  record(recorder);
  if (config.otlpUrl !== undefined) exportMetrics(config.otlpUrl, resource);
  const forgetMeasures = measure(build, parts, queue);
  const sendTheRest = () => Promise.all([queue.close().then(() => exporter?.shutdown()), stopMetrics()]);
  return {
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
    'service.namespace': 'keytrail',
    'service.name': build.service,
    'service.version': build.version,
    'service.instance.id': instance,
    'deployment.environment.name': config.environment,
    'vcs.ref.head.revision': build.revision,
    'host.name': build.host,
    'process.pid': build.pid,
    'process.runtime.name': 'nodejs',
    'process.runtime.version': build.nodeVersion,
    'process.creation.time': build.startedAt,
    'keytrail.build': build.writerBuild,
    'keytrail.build.sources_digest': build.sourcesDigest,
    'keytrail.build.newest_migration': build.newestMigration,
    'keytrail.build.contract_digest': build.contractDigest,
    'keytrail.supervisor': build.supervisor,
    ...(build.image !== '' && { 'container.image.name': build.image }),
  };
}

function measure(build: BuildIdentity, parts: LocalParts, queue: SpanQueue): () => void {
  const info = meter().createObservableGauge('build_info', {
    description: 'The build that runs; the value is always 1',
  });
  const spans = meter().createObservableCounter('keytrail.telemetry.spans', {
    description: 'Ended spans by their fate',
  });
  const waiting = meter().createObservableGauge('keytrail.telemetry.spans.waiting', {
    description: 'Spans in memory by what they wait for',
  });
  const observe: BatchObservableCallback = (result) => {
    result.observe(info, 1, {
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
    result.observe(spans, queue.exported, { fate: 'exported' });
    result.observe(spans, parts.unsampled, { fate: 'unsampled' });
    result.observe(spans, parts.overflowed, { fate: 'buffer_full' });
    result.observe(spans, queue.overflowed, { fate: 'queue_full' });
    result.observe(spans, queue.failed, { fate: 'export_failed' });
    result.observe(waiting, parts.waiting, { for: 'root' });
    result.observe(waiting, queue.length, { for: 'export' });
  };
  const observed = [info, spans, waiting];
  meter().addBatchObservableCallback(observe, observed);
  return () => meter().removeBatchObservableCallback(observe, observed);
}
