import { rule, secretSetting, setting, z } from '@keytrail/settings';

/** How a service reaches NATS. Replicas and storage must be the same in the whole fleet, as each service ensures all streams. */
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
} as const;
