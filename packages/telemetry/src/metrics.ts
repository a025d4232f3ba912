import { createNoopMeter, type Meter } from '@opentelemetry/api';
import { OTLPMetricExporter } from '@opentelemetry/exporter-metrics-otlp-http';
import type { Resource } from '@opentelemetry/resources';
import type { PushMetricExporter } from '@opentelemetry/sdk-metrics';
import { MeterProvider, PeriodicExportingMetricReader } from '@opentelemetry/sdk-metrics';
import type { Deliveries } from './span-queue.ts';

/** Of the metrics of this process. */
export const metricDeliveries: Deliveries = {};

/** Exports since the start of this process. */
export const counted = { sent: 0, failed: 0 };

/** Where metrics go; they may be recorded before it is known. */
class Destination implements PushMetricExporter {
  #exporter: PushMetricExporter | undefined;
  #resource: Resource | undefined;

  connect(url: string, resource: Resource): void {
    this.#exporter = new OTLPMetricExporter({ url: `${url.replace(/\/$/, '')}/v1/metrics`, timeoutMillis: 5_000 });
    this.#resource = resource;
  }

  async disconnect(): Promise<void> {
    const exporter = this.#exporter;
    this.#exporter = undefined;
    await exporter?.shutdown();
  }

  export(...[metrics, done]: Parameters<PushMetricExporter['export']>): void {
    if (this.#exporter === undefined) done({ code: 0 });
    else
      this.#exporter.export({ ...metrics, resource: this.#resource ?? metrics.resource }, (result) => {
        counted[result.code === 0 ? 'sent' : 'failed'] += 1;
        metricDeliveries[result.code === 0 ? 'lastTakenAt' : 'lastFailedAt'] = new Date();
        done(result);
      });
  }

  async forceFlush(): Promise<void> {
    await this.#exporter?.forceFlush();
  }

  async shutdown(): Promise<void> {
    await this.disconnect();
  }
}

const destination = new Destination();
let provider: MeterProvider | undefined;

let recording: 'on' | 'off' = 'on';

/** Instruments that are made while metrics are off do nothing, for good. */
export function switchMetrics(to: 'on' | 'off'): void {
  recording = to;
}

/** The meter of this process. Instruments may be made at any time, before startTelemetry too. */
export function meter(): Meter {
  if (recording === 'off') return createNoopMeter();
  provider ??= new MeterProvider({
    readers: [new PeriodicExportingMetricReader({ exporter: destination, exportIntervalMillis: never })],
  });
  return provider.getMeter('keytrail');
}

// How often is known only from the configuration, and instruments are made before.
const never = 2 ** 31 - 1;
let timer: NodeJS.Timeout | undefined;

export function exportMetrics(url: string, resource: Resource, everyMs: number): void {
  destination.connect(url, resource);
  clearInterval(timer);
  // One that fails is counted; the next sends what it would have sent.
  timer = setInterval(() => void provider?.forceFlush().catch(() => {}), everyMs);
  timer.unref();
}

/** Sends what was recorded so far, then stops sending. */
export async function stopMetrics(): Promise<void> {
  clearInterval(timer);
  // A receiver that is away must not fail the shutdown.
  await provider?.forceFlush().catch(() => {});
  await destination.disconnect();
}
