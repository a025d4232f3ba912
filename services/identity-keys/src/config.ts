import { authSettings } from '@keytrail/auth';
import { erasureSettings, eventSettings } from '@keytrail/events';
import { serverSettings } from '@keytrail/rpc';
import { readSettings, rule, SettingsError, type SettingsValues, secretSetting, setting, z } from '@keytrail/settings';
import { auditSettings, databaseSettings, fenceSettings } from '@keytrail/storage';
import { telemetrySettings } from '@keytrail/telemetry';
import type { PrekeyLimits } from './domain/prekey-limits.ts';

export const identityKeysSettings = {
  ...serverSettings,
  ...authSettings,
  ...telemetrySettings,
  ...databaseSettings,
  ...fenceSettings,
  ...eventSettings,
  ...erasureSettings,
  ...auditSettings,
  callersRememberedMs: setting(
    'KEYTRAIL_CALLERS_REMEMBERED_MS',
    rule.durationMs().default(1_000),
    'how long a process remembers that a calling device is registered and not revoked, and its user not erased: as late at most claims and reads of device lists notice RevokeDevice, and calls DeleteUser; whatever writes notices at once',
  ),
  peerConversation: setting('KEYTRAIL_PEER_CONVERSATION', rule.text(), 'gRPC target of the service conversation'),
  peerSession: setting('KEYTRAIL_PEER_SESSION', rule.text(), 'gRPC target of the service session'),
  peerTimeoutMs: setting(
    'KEYTRAIL_PEER_TIMEOUT_MS',
    rule.durationMs().default(5_000),
    'longest time that one call to another service may take',
  ),
  sharedUsersRememberedMs: setting(
    'KEYTRAIL_SHARED_USERS_REMEMBERED_MS',
    rule.count().default(30_000),
    'how long a process remembers that two users share a conversation: so long one that was left still counts; 0 to ask each time',
  ),
  redisUrl: secretSetting(
    'KEYTRAIL_REDIS_URL',
    rule.url(),
    'Redis or Valkey: leases of gateways and devices in presence, limits on claims in identity-keys',
  ),
  limitsTimeoutMs: setting(
    'KEYTRAIL_LIMITS_TIMEOUT_MS',
    rule.durationMs().default(300),
    'longest time that a claim waits for Redis before it counts as away',
  ),
  limitsWithoutRedis: setting(
    'KEYTRAIL_LIMITS_WITHOUT_REDIS',
    z.enum(['open', 'closed']).default('open'),
    'while Redis is away: open, and the limits on claims hold for each process alone; closed, and claims are refused with PEER_UNAVAILABLE',
  ),
  claimsPerCaller: setting(
    'KEYTRAIL_CLAIMS_PER_CALLER',
    rule.count().default(6_000),
    'bundles that one user may claim in an hour, with all its devices; 0 for no limit',
  ),
  claimsPerCallerBurst: setting(
    'KEYTRAIL_CLAIMS_PER_CALLER_BURST',
    rule.count().min(1).default(3_000),
    'bundles that one user may claim at once',
  ),
  claimsPerTarget: setting(
    'KEYTRAIL_CLAIMS_PER_TARGET',
    rule.count().default(240),
    'bundles of one device that strangers may claim in an hour, all together; 0 for no limit',
  ),
  claimsPerTargetBurst: setting(
    'KEYTRAIL_CLAIMS_PER_TARGET_BURST',
    rule.count().min(1).default(60),
    'bundles of one device that strangers may claim at once',
  ),
  claimsPerPair: setting(
    'KEYTRAIL_CLAIMS_PER_PAIR',
    rule.count().default(60),
    'bundles of one device that one other user may claim in an hour; 0 for no limit',
  ),
  claimsPerPairBurst: setting(
    'KEYTRAIL_CLAIMS_PER_PAIR_BURST',
    rule.count().min(1).default(20),
    'bundles of one device that one other user may claim at once',
  ),
  claimPolicy: setting(
    'KEYTRAIL_CLAIM_POLICY',
    z.enum(['any-device', 'shared-or-permitted']).default('any-device'),
    'whose prekeys a device may claim: any-device within the limits; or only those of users who share a conversation with it or whom SetClaimPermission names',
  ),
  maxDevicesPerClaim: setting(
    'KEYTRAIL_MAX_DEVICES_PER_CLAIM',
    rule.count().min(1).max(1_500).default(1_500),
    'devices in one claim, named or of the named users',
  ),
  claimRequestBytes: setting(
    'KEYTRAIL_CLAIM_REQUEST_BYTES',
    rule
      .count()
      .min(1)
      .default(512 * 1024),
    'largest request of ClaimPrekeyBundles',
  ),
  claimAnswerBytes: setting(
    'KEYTRAIL_CLAIM_ANSWER_BYTES',
    rule
      .count()
      .min(1)
      .default(8 * 1024 * 1024),
    'largest answer of ClaimPrekeyBundles: 1,500 devices are 2.7 MB in Protobuf and 4 MB in JSON',
  ),
  maxDevicesPerUser: setting(
    'KEYTRAIL_MAX_DEVICES_PER_USER',
    rule.count().min(1).default(50),
    'devices that a user may have, revoked ones not counted',
  ),
  maxDevicesEverPerUser: setting(
    'KEYTRAIL_MAX_DEVICES_EVER_PER_USER',
    rule.count().min(1).max(5_000).default(1_000),
    'devices that a user may ever have, revoked ones counted; no more than KEYTRAIL_MAX_DEVICES_PER_ANSWER, so that all of one user fit',
  ),
  maxPrekeysPerPool: setting(
    'KEYTRAIL_MAX_PREKEYS_PER_POOL',
    rule.count().min(1).default(1_000),
    'unclaimed one-time prekeys of one kind that a device may have',
  ),
  lowPrekeysBelow: setting(
    'KEYTRAIL_LOW_PREKEYS_BELOW',
    rule.count().default(20),
    'a device is told that its prekeys are low when a claim leaves fewer than this of a kind',
  ),
  lowPrekeysReminderMs: setting(
    'KEYTRAIL_LOW_PREKEYS_REMINDER_MS',
    rule.durationMs().default(3_600_000),
    'time from one such notice to the next, until the device has refilled its pools and rotated what is overdue',
  ),
  refillPrekeysTo: setting(
    'KEYTRAIL_REFILL_PREKEYS_TO',
    rule.count().min(1).default(100),
    'one-time prekeys of each kind that a device is asked to fill its pools up to',
  ),
  signedPrekeyMaxAgeMs: setting(
    'KEYTRAIL_SIGNED_PREKEY_MAX_AGE_MS',
    rule.durationMs().default(7 * 24 * 3_600_000),
    'a signed prekey that has been current for longer is to be rotated',
  ),
  lastResortMaxAgeMs: setting(
    'KEYTRAIL_LAST_RESORT_MAX_AGE_MS',
    rule.durationMs().default(30 * 24 * 3_600_000),
    'a last-resort prekey that has been current for longer is to be rotated',
  ),
  oneTimePrekeyMaxAgeMs: setting(
    'KEYTRAIL_ONE_TIME_PREKEY_MAX_AGE_MS',
    rule.durationMs().default(90 * 24 * 3_600_000),
    'a one-time prekey that nobody claimed for longer is retired',
  ),
  prekeyWatchIntervalMs: setting(
    'KEYTRAIL_PREKEY_WATCH_INTERVAL_MS',
    rule.durationMs().default(5_000),
    'how often to remind devices of low or overdue prekeys and to look at the next 1,000 devices: all are looked at within (devices / 1,000) times this',
  ),
  prekeyGraceMs: setting(
    'KEYTRAIL_PREKEY_GRACE_MS',
    rule.durationMs().default(14 * 24 * 3_600_000),
    'how long devices keep the private key of a replaced signed or last-resort prekey; claims are repeatable for 7 days, so no less',
  ),
  maxDevicesPerAnswer: setting(
    'KEYTRAIL_MAX_DEVICES_PER_ANSWER',
    rule.count().min(1).default(2_000),
    'devices in one answer of GetDevices; more would not fit into KEYTRAIL_MAX_MESSAGE_BYTES',
  ),
  rootKeyReset: setting(
    'KEYTRAIL_ROOT_KEY_RESET',
    z.enum(['allowed', 'refused']).default('allowed'),
    'whether a user who lost every device and the recovery key may begin anew with a root key that the previous one did not sign',
  ),
  maxLogEntriesPerAnswer: setting(
    'KEYTRAIL_MAX_LOG_ENTRIES_PER_ANSWER',
    rule.count().min(1).default(2_000),
    'entries of device logs in one answer of ListDeviceLog; more are told to be missing, and asked for again',
  ),
  purgeIntervalMs: setting(
    'KEYTRAIL_PURGE_INTERVAL_MS',
    rule.durationMs().default(3_600_000),
    'how often to forget request ids, and in identity-keys claims, that are older than 7 days',
  ),
} as const;

export type IdentityKeysConfig = SettingsValues<typeof identityKeysSettings>;

export function readConfig(environment: Readonly<Record<string, string | undefined>>): IdentityKeysConfig {
  const config = readSettings(identityKeysSettings, environment);
  if (config.maxDevicesEverPerUser > config.maxDevicesPerAnswer)
    throw new SettingsError([
      {
        variable: identityKeysSettings.maxDevicesEverPerUser.variable,
        problem: `is more than ${identityKeysSettings.maxDevicesPerAnswer.variable}`,
      },
    ]);
  return config;
}

export function prekeyLimitsOf(config: IdentityKeysConfig): PrekeyLimits {
  return {
    lowBelow: config.lowPrekeysBelow,
    refillTo: config.refillPrekeysTo,
    signedMaxAgeMs: config.signedPrekeyMaxAgeMs,
    lastResortMaxAgeMs: config.lastResortMaxAgeMs,
    oneTimeMaxAgeMs: config.oneTimePrekeyMaxAgeMs,
    graceMs: config.prekeyGraceMs,
  };
}
