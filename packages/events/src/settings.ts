import { rule, secretSetting, setting, z } from '@keytrail/settings';
import { inboxRetentionMs } from './inbox.ts';

/** How a service reaches NATS. All but the URL must be the same in the whole fleet, as each service ensures all streams. */
export const eventSettings = {
  natsUrl: secretSetting('KEYTRAIL_NATS_URL', rule.text(), 'NATS URL, or several separated by commas'),
  natsReplicas: setting(
    'KEYTRAIL_NATS_REPLICAS',
    rule.count().min(1).max(5).default(1),
    'copies that JetStream keeps of each stream',
  ),
  natsStorage: setting(
    'KEYTRAIL_NATS_STORAGE',
    z.enum(['file', 'memory']).default('file'),
    'where JetStream keeps streams',
  ),
  natsMaxBytes: setting(
    'KEYTRAIL_NATS_MAX_BYTES',
    rule.count().default(0),
    'bytes that one stream may hold before its oldest events go, handled or not; 0 for no bound but the three days',
  ),
  natsAckWaitMs: setting(
    'KEYTRAIL_NATS_ACK_WAIT_MS',
    rule.durationMs().min(500).default(30_000),
    'time after which an event whose replica died or is stuck goes to another',
  ),
} as const;

/** How a service erases users. How long an erasure is remembered must be the same in the whole fleet. */
export const erasureSettings = {
  erasureBatch: setting(
    'KEYTRAIL_ERASURE_BATCH',
    rule.count().min(1).default(500),
    'rows, or in session sessions, that one transaction of an erasure goes through',
  ),
  erasureRoundMs: setting(
    'KEYTRAIL_ERASURE_ROUND_MS',
    rule.durationMs().default(60_000),
    'how often erasures that are not complete are taken up again, and asked of the other services again',
  ),
  erasedUserRetentionMs: setting(
    'KEYTRAIL_ERASED_USER_RETENTION_MS',
    rule
      .durationMs()
      .min(inboxRetentionMs)
      .default(30 * 24 * 60 * 60 * 1000),
    'how long the id of an erased user is remembered after the erasure, so that no token from before brings the user back; four days at least, as streams can ask for the erasure again for three',
  ),
} as const;
