import { authSettings } from '@keytrail/auth';
import { erasureSettings, eventSettings } from '@keytrail/events';
import { serverSettings } from '@keytrail/rpc';
import { readSettings, rule, type SettingsValues, setting } from '@keytrail/settings';
import { auditSettings, databaseSettings, fenceSettings } from '@keytrail/storage';
import { telemetrySettings } from '@keytrail/telemetry';

export const sessionSettings = {
  ...serverSettings,
  ...authSettings,
  ...telemetrySettings,
  ...databaseSettings,
  ...fenceSettings,
  ...eventSettings,
  ...erasureSettings,
  ...auditSettings,
  peerConversation: setting('KEYTRAIL_PEER_CONVERSATION', rule.text(), 'gRPC target of the service conversation'),
  peerIdentityKeys: setting('KEYTRAIL_PEER_IDENTITY_KEYS', rule.text(), 'gRPC target of the service identity-keys'),
  peerPresence: setting('KEYTRAIL_PEER_PRESENCE', rule.text(), 'gRPC target of the service presence'),
  peerTimeoutMs: setting(
    'KEYTRAIL_PEER_TIMEOUT_MS',
    rule.durationMs().default(5_000),
    'longest time that one call to another service may take',
  ),
  offersAtOnce: setting(
    'KEYTRAIL_KEY_REQUEST_OFFERS_AT_ONCE',
    rule.count().min(1).default(2),
    'holders that are offered a key request at the same time',
  ),
  hedgeMs: setting(
    'KEYTRAIL_KEY_REQUEST_HEDGE_MS',
    rule.count().default(500),
    'time that an offer stands alone before the next holder is offered the request besides; 0 offers to several at once',
  ),
  offerMs: setting(
    'KEYTRAIL_KEY_REQUEST_OFFER_MS',
    rule.durationMs().default(5000),
    'time after which an unanswered offer lapses and further holders are asked',
  ),
  waitMs: setting(
    'KEYTRAIL_KEY_REQUEST_WAIT_MS',
    rule.durationMs().default(30_000),
    'time after which a waiting key request is looked at again although no holder was seen attaching',
  ),
  expiryMs: setting(
    'KEYTRAIL_KEY_REQUEST_EXPIRY_MS',
    rule.durationMs().default(7 * 24 * 60 * 60 * 1000),
    'time after which a key request that nobody fulfilled expires',
  ),
  attemptsMax: setting(
    'KEYTRAIL_KEY_REQUEST_ATTEMPTS',
    rule.count().min(1).default(20),
    'attempts after which a key request is given up',
  ),
  rejectionsMax: setting(
    'KEYTRAIL_KEY_REJECTIONS',
    rule.count().min(1).default(10),
    'envelopes that a device may reject for one session; after that, its requests for the next one end at once',
  ),
  offersPerHolder: setting(
    'KEYTRAIL_KEY_REQUEST_OFFERS_PER_HOLDER',
    rule.count().min(1).default(64),
    'offers of one requesting device that stand with one holder at the same time, and as many again for what its user looks at; further requests wait for their turn',
  ),
  openRequestsMax: setting(
    'KEYTRAIL_KEY_REQUESTS_OPEN',
    rule.count().min(1).default(1_000),
    'key requests that one device may have open; more are refused with LIMIT_EXCEEDED',
  ),
  sweepMs: setting(
    'KEYTRAIL_KEY_REQUEST_SWEEP_MS',
    rule.durationMs().default(1000),
    'interval of the sweep over key requests that are due',
  ),
  revocationsPullMs: setting(
    'KEYTRAIL_REVOCATIONS_PULL_MS',
    rule.durationMs().default(5000),
    'how often to ask identity-keys for revocations that no event told: as late one is noticed at most, besides the call itself',
  ),
  endedKeyRequestRetentionMs: setting(
    'KEYTRAIL_ENDED_KEY_REQUEST_RETENTION_MS',
    rule.durationMs().default(90 * 24 * 60 * 60 * 1000),
    'how long a key request that ended without a key, and the offers of any that ended, can be looked at',
  ),
  purgeIntervalMs: setting(
    'KEYTRAIL_PURGE_INTERVAL_MS',
    rule.durationMs().default(3_600_000),
    'how often to forget request ids, and in identity-keys claims, that are older than 7 days',
  ),
} as const;

export type SessionConfig = SettingsValues<typeof sessionSettings>;

/** Throws SettingsError naming every broken variable. */
export function readConfig(environment: Readonly<Record<string, string | undefined>>): SessionConfig {
  return readSettings(sessionSettings, environment);
}
