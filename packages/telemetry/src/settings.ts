import type { SettingsValues } from '@keytrail/settings';
import { rule, secretSetting, setting, z } from '@keytrail/settings';
import { supervisors } from './supervisor.ts';

/** What every process needs to be observable. */
export const telemetrySettings = {
  environment: setting(
    'KEYTRAIL_ENVIRONMENT',
    z.enum(['development', 'production']).default('production'),
    'development or production: development allows known credentials and the local token issuer',
  ),
  logLevel: setting(
    'KEYTRAIL_LOG_LEVEL',
    z.enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']).default('info'),
    'The least severe log lines to write',
  ),
  telemetry: setting(
    'KEYTRAIL_TELEMETRY',
    z.enum(['on', 'off']).default('on'),
    'off leaves out spans and metrics altogether, and with them the trace ids of errors: to measure what they cost, not to run without them',
  ),
  otlpUrl: setting(
    'KEYTRAIL_OTLP_URL',
    rule.url().optional(),
    'Base URL of an OTLP/HTTP receiver, such as http://127.0.0.1:4318; nothing is exported when unset',
  ),
  traceRatio: setting(
    'KEYTRAIL_TRACE_RATIO',
    rule.ratio().default(0.01),
    'Share of traces exported whole; misses, errors, slow requests and writes of keys are exported besides',
  ),
  slowMs: setting('KEYTRAIL_SLOW_MS', rule.durationMs().default(500), 'A request that takes longer is always exported'),
  pseudonymKey: secretSetting(
    'KEYTRAIL_PSEUDONYM_KEY',
    z.string().min(16).optional(),
    'Key of the pseudonyms that stand for user and device ids in telemetry; the same for all services; required in production',
  ),
  metricsExportMs: setting(
    'KEYTRAIL_METRICS_EXPORT_MS',
    rule.durationMs().default(15_000),
    'How often metrics are exported',
  ),
  gaugesMs: setting(
    'KEYTRAIL_GAUGES_MS',
    rule.durationMs().default(30_000),
    'How often the database and NATS are asked for the figures that are gauges, such as the age of the oldest open key request',
  ),
  revision: setting(
    'KEYTRAIL_REVISION',
    rule.text().optional(),
    'Revision of the sources, for images without a .git folder',
  ),
  image: setting(
    'KEYTRAIL_IMAGE',
    rule.text().optional(),
    'Image that the process was started from, with its digest when that is known; told in diagnostics',
  ),
  supervisor: setting(
    'KEYTRAIL_SUPERVISOR',
    z.enum(supervisors).optional(),
    'What starts the process again when it ends: kubernetes, systemd, container, launcher (make up, when it is called anew) or none; found out when unset',
  ),
};

export type TelemetryConfig = SettingsValues<typeof telemetrySettings>;
