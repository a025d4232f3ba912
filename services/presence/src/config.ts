import { authSettings } from '@keytrail/auth';
import { eventSettings } from '@keytrail/events';
import { serverSettings } from '@keytrail/rpc';
import { readSettings, rule, type SettingsValues, secretSetting, setting } from '@keytrail/settings';
import { telemetrySettings } from '@keytrail/telemetry';

export const presenceSettings = {
  ...serverSettings,
  ...authSettings,
  ...telemetrySettings,
  ...eventSettings,
  redisUrl: secretSetting(
    'KEYTRAIL_REDIS_URL',
    rule.url(),
    'Redis or Valkey: leases of gateways and devices in presence, limits on claims in identity-keys',
  ),
  redisCluster: secretSetting(
    'KEYTRAIL_REDIS_CLUSTER',
    rule.list().default([]),
    'some nodes of a Redis Cluster as URLs, comma separated; then presence uses it, and not KEYTRAIL_REDIS_URL',
  ),
  peerSession: setting('KEYTRAIL_PEER_SESSION', rule.text(), 'gRPC target of the service session'),
  peerConversation: setting('KEYTRAIL_PEER_CONVERSATION', rule.text(), 'gRPC target of the service conversation'),
  peerTimeoutMs: setting(
    'KEYTRAIL_PEER_TIMEOUT_MS',
    rule.durationMs().default(5_000),
    'longest time that one call to another service may take',
  ),
  peerIdentityKeys: setting('KEYTRAIL_PEER_IDENTITY_KEYS', rule.text(), 'gRPC target of the service identity-keys'),
  standingTimeoutMs: setting(
    'KEYTRAIL_ATTACH_STANDING_MS',
    rule.durationMs().default(1_000),
    'how long Attach waits for identity-keys to say whether the device is registered and how its prekeys are; then it attaches without',
  ),
  standingsAtOnce: setting(
    'KEYTRAIL_ATTACH_STANDINGS_AT_ONCE',
    rule.count().default(64),
    'for how many attaching devices one replica asks identity-keys at the same time; those past them attach without, and are asked for again',
  ),
  waitingTimeoutMs: setting(
    'KEYTRAIL_ATTACH_WAITING_MS',
    rule.durationMs().default(1_000),
    'how long Attach waits for session and conversation to say what waits for the device; then it greets without',
  ),
  waitingAtOnce: setting(
    'KEYTRAIL_ATTACH_WAITING_AT_ONCE',
    rule.count().default(64),
    'for how many attaching devices one replica asks session, and conversation, what waits, at the same time; those past them are greeted without',
  ),
  attachesPerSecond: setting(
    'KEYTRAIL_ATTACHES_PER_SECOND',
    rule.count().default(500),
    'how many devices one replica attaches per second; the others are told when to come again. Also how far apart the devices of a draining replica return. 0 for no bound',
  ),
  attachesAtOnce: setting(
    'KEYTRAIL_ATTACHES_AT_ONCE',
    rule.count().default(256),
    'how many devices may be between their Attach and their greeting at one replica. 0 for no bound',
  ),
  revocationsPullMs: setting(
    'KEYTRAIL_REVOCATIONS_PULL_MS',
    rule.durationMs().default(5000),
    'how often to ask identity-keys for revocations that no event told: as late one is noticed at most, besides the call itself',
  ),
  gatewayLeaseMs: setting(
    'KEYTRAIL_GATEWAY_LEASE_MS',
    rule.durationMs().default(10_000),
    "how long a gateway's devices stay online after its last renewal",
  ),
  gatewayRenewMs: setting(
    'KEYTRAIL_GATEWAY_RENEW_MS',
    rule.durationMs().default(3_000),
    'how often a gateway renews its lease',
  ),
  heartbeatIntervalMs: setting(
    'KEYTRAIL_HEARTBEAT_INTERVAL_MS',
    rule.durationMs().default(10_000),
    'how often an attached device must call Heartbeat; three missed ones end its stream',
  ),
  sweepMs: setting(
    'KEYTRAIL_PRESENCE_SWEEP_MS',
    rule.durationMs().default(60_000),
    'how often a gateway re-asserts all its devices in Redis; device entries expire after three sweeps',
  ),
  maxAttachments: setting(
    'KEYTRAIL_MAX_ATTACHMENTS',
    rule.count().default(20_000),
    'how many streams one replica holds; more are refused with LIMIT_EXCEEDED',
  ),
  maxQueuedNotifications: setting(
    'KEYTRAIL_MAX_QUEUED_NOTIFICATIONS',
    rule.count().default(1_000),
    'how many notifications wait for a slow device before its stream is ended; it attaches again and pulls',
  ),
} as const;

export type PresenceConfig = SettingsValues<typeof presenceSettings>;

export function readConfig(environment: Readonly<Record<string, string | undefined>>): PresenceConfig {
  return readSettings(presenceSettings, environment);
}
