import { rule, secretSetting, setting, z } from '@keytrail/settings';

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

/** How a service notices that its database went back in time. Must be the same in the whole fleet. */
export const fenceSettings = {
  fenceLookMs: setting(
    'KEYTRAIL_FENCE_LOOK_MS',
    rule.durationMs().default(1_000),
    'how often each process looks whether its database went back in time and notes outside of it how far it has come: a copy that is younger than this when it is put back is not told from the original by that alone',
  ),
  timelineSwitch: setting(
    'KEYTRAIL_TIMELINE_SWITCH',
    z.enum(['may-lose', 'loses-nothing']).default('may-lose'),
    'what the promotion of a standby means: may-lose, and it counts as a restore; loses-nothing, where replication is synchronous and only standbys that have every commit are promoted, and it does not unless the database is behind',
  ),
} as const;
