import { rule, type SettingsValues, setting } from '@keytrail/settings';

export const serverSettings = {
  host: setting('KEYTRAIL_HOST', rule.text().default('127.0.0.1'), 'address that both ports bind'),
  grpcPort: setting('KEYTRAIL_GRPC_PORT', rule.port().default(0), 'port of the gRPC wire; 0 for any free one'),
  webPort: setting(
    'KEYTRAIL_WEB_PORT',
    rule.port().default(0),
    'port of the web wire (Connect, gRPC-Web, JSON); 0 for any free one',
  ),
  allowedOrigins: setting(
    'KEYTRAIL_ALLOWED_ORIGINS',
    rule.list().default([]),
    'origins of web clients, separated by commas; `*` for any',
  ),
  drainMs: setting('KEYTRAIL_DRAIN_MS', rule.durationMs().default(10_000), 'longest time that a graceful stop takes'),
  helpBaseUrl: setting(
    'KEYTRAIL_HELP_BASE_URL',
    rule.text().default('docs/reasons'),
    'where the pages of the reasons are; refusals link to them',
  ),
  defaultDeadlineMs: setting(
    'KEYTRAIL_DEFAULT_DEADLINE_MS',
    rule.durationMs().default(10_000),
    'deadline of a unary call that brings none',
  ),
  maxDeadlineMs: setting(
    'KEYTRAIL_MAX_DEADLINE_MS',
    rule.durationMs().default(60_000),
    'longest deadline of a unary call, whatever the caller asks for',
  ),
  maxMessageBytes: setting(
    'KEYTRAIL_MAX_MESSAGE_BYTES',
    rule.count().default(4 * 1024 * 1024),
    'largest request and answer on both wires',
  ),
  callerRequestsPerSecond: setting(
    'KEYTRAIL_CALLER_REQUESTS_PER_SECOND',
    rule.count().default(200),
    'requests per second of one device or operator to one process, over all methods; 0 for no limit',
  ),
  callerBurst: setting(
    'KEYTRAIL_CALLER_BURST',
    rule.count().default(400),
    'requests that one caller may make at once before the rate counts',
  ),
  callerInFlight: setting(
    'KEYTRAIL_CALLER_IN_FLIGHT',
    rule.count().default(64),
    'calls and streams of one caller in flight in one process; 0 for no limit',
  ),
  maxConnectionAgeMs: setting(
    'KEYTRAIL_MAX_CONNECTION_AGE_MS',
    rule.durationMs().default(300_000),
    'age at which gRPC connections are renewed, so that new replicas get their share',
  ),
};

export type ServerConfig = SettingsValues<typeof serverSettings>;
