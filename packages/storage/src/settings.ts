import { rule, secretSetting, setting } from '@keytrail/settings';

/** How a service reaches its own database. */
export const databaseSettings = {
  databaseUrl: secretSetting('KEYTRAIL_DATABASE_URL', rule.url(), 'PostgreSQL URL of the database of this service'),
  databaseConnections: setting(
    'KEYTRAIL_DATABASE_CONNECTIONS',
    rule.count().min(1).default(10),
    'connections in the pool of one process; for small statements that come often up to four more are shared',
  ),
  statementTimeoutMs: setting(
    'KEYTRAIL_STATEMENT_TIMEOUT_MS',
    rule.durationMs().default(5000),
    'a statement that takes longer is cancelled; also how long to wait for a free connection',
  ),
} as const;
