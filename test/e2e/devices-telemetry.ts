import { readSettings } from '@keytrail/settings';
import { startTelemetry, type Telemetry, telemetrySettings } from '@keytrail/telemetry';

/** Has the SDK clients of this process record spans, as an application with OpenTelemetry would: the service `devices`. */
export function recordDevices(otlpUrl: string, traceRatio: number): Telemetry {
  const config = readSettings(telemetrySettings, {
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_LOG_LEVEL: 'silent',
    KEYTRAIL_OTLP_URL: otlpUrl,
    KEYTRAIL_TRACE_RATIO: String(traceRatio),
    KEYTRAIL_SLOW_MS: '600000',
  });
  return startTelemetry({ service: 'devices', config });
}
