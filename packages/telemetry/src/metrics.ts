import type { Meter } from '@opentelemetry/api';
import { OTLPMetricExporter } from '@opentelemetry/exporter-metrics-otlp-http';
import type { Resource } from '@opentelemetry/resources';
import type { PushMetricExporter } from '@opentelemetry/sdk-metrics';
import { MeterProvider, PeriodicExportingMetricReader } from '@opentelemetry/sdk-metrics';

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
    else this.#exporter.export({ ...metrics, resource: this.#resource ?? metrics.resource }, done);
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

/** The meter of this process. Instruments may be made at any time, before startTelemetry too. */
export function meter(): Meter {
  provider ??= new MeterProvider({
    readers: [new PeriodicExportingMetricReader({ exporter: destination, exportIntervalMillis: 15_000 })],
  });
  return provider.getMeter('keytrail');
}

export function exportMetrics(url: string, resource: Resource): void {
  destination.connect(url, resource);
}

/** Sends what was recorded so far, then stops sending. */
export async function stopMetrics(): Promise<void> {
  // A receiver that is away must not fail the shutdown.
  await provider?.forceFlush().catch(() => {});
  await destination.disconnect();
}
