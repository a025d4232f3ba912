import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { readSettings } from '@keytrail/settings';
import { type DestinationStream, startTelemetry, type Telemetry, telemetrySettings } from '@keytrail/telemetry';

export interface ReceivedSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly name: string;
  readonly attributes: readonly { key: string; value: Record<string, unknown> }[];
  readonly links?: readonly { traceId: string; spanId: string }[];
  readonly status?: { code?: number; message?: string };
}

export interface SpanReceiver {
  readonly telemetry: Telemetry;
  /** The whole of what was exported, as text. */
  text(): string;
  /** Everything exported so far. */
  spans(): Promise<ReceivedSpan[]>;
  stop(): Promise<void>;
}

/** Starts telemetry that exports every trace, or a share of them, to a receiver in this process. */
export async function receiveSpans(
  service: string,
  logTo?: DestinationStream,
  { traceRatio = 1 }: { traceRatio?: number } = {},
): Promise<SpanReceiver> {
  const bodies: string[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
      if (request.url === '/v1/traces') bodies.push(Buffer.concat(chunks).toString());
      response.setHeader('content-type', 'application/json').end('{}');
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const config = readSettings(telemetrySettings, {
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_LOG_LEVEL: logTo ? 'info' : 'silent',
    KEYTRAIL_TRACE_RATIO: String(traceRatio),
    KEYTRAIL_OTLP_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
  });
  const telemetry = startTelemetry({ service, config, ...(logTo && { logTo }) });
  return {
    telemetry,
    text: () => bodies.join('\n'),
    async spans() {
      await telemetry.flush();
      return bodies.flatMap((body) =>
        JSON.parse(body).resourceSpans.flatMap((resource: { scopeSpans: { spans: ReceivedSpan[] }[] }) =>
          resource.scopeSpans.flatMap(({ spans }) => spans),
        ),
      );
    },
    async stop() {
      await telemetry.shutdown();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
