import { readSettings } from '@keytrail/settings';
import type { TraceSpan, TraceTree } from '@keytrail/traces';
import { assembleTrace, startTraceStore } from '@keytrail/traces';
import type { DestinationStream, Telemetry, TelemetryConfig } from '../src/index.ts';
import { startTelemetry, telemetrySettings } from '../src/index.ts';

export function config(environment: Record<string, string> = {}): TelemetryConfig {
  return readSettings(telemetrySettings, { KEYTRAIL_ENVIRONMENT: 'development', ...environment });
}

export interface Observed {
  readonly telemetry: Telemetry;
  readonly url: string;
  /** The trace as it was exported by now; empty when nothing was. */
  exported(traceId: string): Promise<TraceTree>;
  names(traceId: string): Promise<string[]>;
  stop(): Promise<void>;
}

/** Telemetry that exports over HTTP into a trace store of its own; nothing is sampled unless said. */
export async function observe(environment: Record<string, string> = {}, logTo?: DestinationStream): Promise<Observed> {
  const store = await startTraceStore();
  const telemetry = startTelemetry({
    service: 'session',
    instance: 'session-1',
    config: config({ KEYTRAIL_TRACE_RATIO: '0', KEYTRAIL_OTLP_URL: store.url, ...environment }),
    ...(logTo && { logTo }),
  });
  async function exported(traceId: string): Promise<TraceTree> {
    await telemetry.flush();
    const response = await fetch(`${store.url}/traces/${traceId}`);
    const { spans = [] } = (await response.json()) as { spans?: TraceSpan[] };
    return assembleTrace(spans);
  }
  return {
    telemetry,
    url: store.url,
    exported,
    names: async (traceId) => (await exported(traceId)).spans.map((span) => span.name),
    async stop() {
      await telemetry.shutdown();
      await store.stop();
    },
  };
}

export class Lines implements DestinationStream {
  readonly text: string[] = [];

  write(line: string): void {
    this.text.push(line);
  }

  get json(): Record<string, unknown>[] {
    return this.text.map((line) => JSON.parse(line) as Record<string, unknown>);
  }
}
