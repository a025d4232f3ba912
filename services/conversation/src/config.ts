import { authSettings } from '@keytrail/auth';
import { erasureSettings, eventSettings } from '@keytrail/events';
import { serverSettings } from '@keytrail/rpc';
import { readSettings, rule, type SettingsValues, setting, z } from '@keytrail/settings';
import { auditSettings, databaseSettings, fenceSettings } from '@keytrail/storage';
import { telemetrySettings } from '@keytrail/telemetry';
import { faultPoints } from './fault-points.ts';

export const conversationSettings = {
  ...serverSettings,
  ...authSettings,
  ...telemetrySettings,
  ...databaseSettings,
  ...fenceSettings,
  ...eventSettings,
  ...erasureSettings,
  ...auditSettings,
  identityKeys: setting('KEYTRAIL_PEER_IDENTITY_KEYS', rule.text(), 'gRPC target of the service identity-keys'),
  session: setting('KEYTRAIL_PEER_SESSION', rule.text(), 'gRPC target of the service session'),
  presence: setting('KEYTRAIL_PEER_PRESENCE', rule.text(), 'gRPC target of the service presence'),
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
  rotationMaxAgeMs: setting(
    'KEYTRAIL_ROTATION_MAX_AGE_MS',
    rule.count().default(7 * 24 * 60 * 60 * 1000),
    'age in milliseconds of a session from which on a message under it makes its rotation due, 0 for never',
  ),
  rotationMaxMessages: setting(
    'KEYTRAIL_ROTATION_MAX_MESSAGES',
    rule.count().default(10_000),
    'messages under a session after which its rotation is due, 0 for never',
  ),
  rotationAskMs: setting(
    'KEYTRAIL_ROTATION_ASK_MS',
    rule.durationMs().default(15_000),
    'how long a device that is asked to make a rotation has for it before the next one is asked',
  ),
  rotationGraceMs: setting(
    'KEYTRAIL_ROTATION_GRACE_MS',
    rule.count().default(1_000),
    'how long in milliseconds a rotation is due before a device is asked: whoever made it due may make it at once',
  ),
  rotationRetryMs: setting(
    'KEYTRAIL_ROTATION_RETRY_MS',
    rule.durationMs().default(30_000),
    'how soon a device is asked for the same rotation again, and presence when nobody was online; doubled each time, up to 128 times as long',
  ),
  rotationSweepMs: setting(
    'KEYTRAIL_ROTATION_SWEEP_MS',
    rule.durationMs().default(1_000),
    'how often to look for rotations that a device is to be asked for',
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
