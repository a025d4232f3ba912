import { authSettings } from '@keytrail/auth';
import { erasureSettings, eventSettings } from '@keytrail/events';
import { serverSettings } from '@keytrail/rpc';
import { readSettings, rule, type SettingsValues, setting, z } from '@keytrail/settings';
import { databaseSettings } from '@keytrail/storage';
import { telemetrySettings } from '@keytrail/telemetry';
import { faultPoints } from './fault-points.ts';

export const conversationSettings = {
  ...serverSettings,
  ...authSettings,
  ...telemetrySettings,
  ...databaseSettings,
  ...eventSettings,
  ...erasureSettings,
  identityKeys: setting('KEYTRAIL_PEER_IDENTITY_KEYS', rule.text(), 'gRPC target of the service identity-keys'),
  session: setting('KEYTRAIL_PEER_SESSION', rule.text(), 'gRPC target of the service session'),
  peerTimeoutMs: setting(
    'KEYTRAIL_PEER_TIMEOUT_MS',
    rule.durationMs().default(5_000),
    'longest time that one call to another service may take',
  ),
  reconcileIntervalMs: setting(
    'KEYTRAIL_RECONCILE_INTERVAL_MS',
    rule.durationMs().default(30_000),
    'how often to look for sessions that were stored and never committed',
  ),
  candidateAgeMs: setting(
    'KEYTRAIL_CANDIDATE_AGE_MS',
    rule.durationMs().default(300_000),
    'age at which a session that was not committed is given up; longer than any call may take (KEYTRAIL_MAX_DEADLINE_MS)',
  ),
  signingKeyCacheSize: setting(
    'KEYTRAIL_SIGNING_KEY_CACHE_SIZE',
    rule.count().min(1).default(20_000),
    'signing keys of devices that are remembered',
  ),
  signingKeyCacheMs: setting(
    'KEYTRAIL_SIGNING_KEY_CACHE_MS',
    rule.durationMs().default(30_000),
    'how long a signing key is remembered; a device that is known here to be revoked cannot send within it',
  ),
  revocationsPullMs: setting(
    'KEYTRAIL_REVOCATIONS_PULL_MS',
    rule.durationMs().default(5000),
    'how often to ask identity-keys for revocations that no event told: as late one is noticed at most, besides the call itself',
  ),
  purgeIntervalMs: setting(
    'KEYTRAIL_PURGE_INTERVAL_MS',
    rule.durationMs().default(3_600_000),
    'how often to forget request ids, and in identity-keys claims, that are older than 7 days',
  ),
  faultPoint: setting(
    'KEYTRAIL_FAULT_POINT',
    z.enum(faultPoints).optional(),
    'for fault tests in development: the process kills itself when it comes to this point',
  ),
} as const;

export type ConversationConfig = SettingsValues<typeof conversationSettings>;

/** Reads the configuration from an environment. Throws for a fault point outside development. */
export function readConfig(environment: Readonly<Record<string, string | undefined>>): ConversationConfig {
  const config = readSettings(conversationSettings, environment);
  if (config.faultPoint !== undefined && config.environment !== 'development')
    throw new Error('KEYTRAIL_FAULT_POINT is refused outside development');
  return config;
}
