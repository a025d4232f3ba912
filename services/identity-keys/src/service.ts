import { join } from 'node:path';
import { createAuthenticator, createServiceIdentity } from '@keytrail/auth';
import {
  ConversationService,
  DiagnosticsService,
  IdentityKeysOperatorService,
  IdentityKeysService,
  SessionService,
} from '@keytrail/contracts';
import { diagnosticsRpcs, startProcessGauges } from '@keytrail/diagnosis';
import { connectEvents, startRelay, startRestoreFence } from '@keytrail/events';
import { allReady, connectPeer, startServer } from '@keytrail/rpc';
import { openDatabase } from '@keytrail/storage';
import { startTelemetry, type Telemetry } from '@keytrail/telemetry';
import { probeClaimLimitsRedis } from './checks/claim-limits-redis.ts';
import { databaseChecks } from './checks/index.ts';
import { createClaimLimits } from './claim-limits.ts';
import { createClaimPolicy } from './claim-policy.ts';
import { type IdentityKeysConfig, prekeyLimitsOf } from './config.ts';
import { gatherErasureReports } from './consumers/gather-erasure-reports.ts';
import { ratePerHour } from './domain/gcra.ts';
import { createDrainSignals } from './drain-signals.ts';
import { completeErasures } from './jobs/complete-erasures.ts';
import { startForgetting } from './jobs/forget-old-claims.ts';
import { startWatchingPrekeys } from './jobs/watch-prekeys.ts';
import { createLowPrekeys } from './low-prekeys.ts';
import { startPrekeyGauges } from './prekey-metrics.ts';
import { changeRootKey } from './rpc/change-root-key.ts';
import { checkKeys } from './rpc/check-keys.ts';
import { claimPrekeyBundles } from './rpc/claim-prekey-bundles.ts';
import { deleteUser } from './rpc/delete-user.ts';
import { forLivingUsers } from './rpc/for-living-users.ts';
import { getDevices } from './rpc/get-devices.ts';
import { getErasure } from './rpc/get-erasure.ts';
import { getPrekeyStatus } from './rpc/get-prekey-status.ts';
import { getRecovery } from './rpc/get-recovery.ts';
import { listDeviceLog } from './rpc/list-device-log.ts';
import { listRevokedDevices } from './rpc/list-revoked-devices.ts';
import { findDevices } from './rpc/operator/find-devices.ts';
import { registerDevice } from './rpc/register-device.ts';
import { replenishPrekeys } from './rpc/replenish-prekeys.ts';
import { revokeDevice } from './rpc/revoke-device.ts';
import { rotateSignedPrekey } from './rpc/rotate-signed-prekey.ts';
import { setClaimPermission } from './rpc/set-claim-permission.ts';
import { setRecovery } from './rpc/set-recovery.ts';
import { createSharing } from './sharing.ts';
import { createStandings } from './standings.ts';
import { recordAnswer } from './store/audit-log.ts';
import { PrismaClient } from './store/generated/client.ts';
import { recoverFromRestore } from './store/recover-from-restore.ts';
import { RedisLimits } from './store/redis-limits.ts';

export { type IdentityKeysConfig, identityKeysSettings, readConfig } from './config.ts';

const service = 'identity-keys';

/** Where the migrations of this service are. */
export const migrationsFolder = join(import.meta.dirname, '../prisma/migrations');

export interface IdentityKeys {
  start(): Promise<{ grpcPort: number; webPort: number }>;
  /** Drains the calls, then closes what they used. */
  stop(): Promise<void>;
}

export interface IdentityKeysOverrides {
  readonly telemetry?: Telemetry;
}

/** The service with everything it is made of. */
export function createIdentityKeys(config: IdentityKeysConfig, overrides: IdentityKeysOverrides = {}): IdentityKeys {
  const closing: (() => Promise<unknown> | unknown)[] = [];

  async function start() {
    const telemetry = overrides.telemetry ?? startTelemetry({ service, config });
    if (!overrides.telemetry) closing.push(() => telemetry.shutdown());
    const { log, build } = telemetry;

    const db = openDatabase({
      url: config.databaseUrl,
      service,
      connections: config.databaseConnections,
      statementTimeoutMs: config.statementTimeoutMs,
      migrations: migrationsFolder,
    });
    closing.push(() => db.close());
    // Before anything else is asked or written; when it cannot be found out yet, the watch over readiness does.
    await db.schema.check().catch(() => {});
    const prisma = new PrismaClient({ adapter: db.prismaAdapter() });
    closing.push(() => prisma.$disconnect());
    const bus = await connectEvents({ config, log, name: `keytrail-${service}` });
    closing.push(() => bus.close());
    await bus.ensure();
    const fence = await startRestoreFence({ db, bus, log, config, recover: recoverFromRestore });
    closing.push(() => fence.stop());
    const relay = startRelay({ db, bus, service, log });
    closing.push(() => relay.stop());
    const forgetting = startForgetting({
      db,
      log,
      everyMs: config.purgeIntervalMs,
      graceMs: config.prekeyGraceMs,
      auditLogRetentionMs: config.auditLogRetentionMs,
    });
    closing.push(() => forgetting.stop());

    const completing = completeErasures({
      db,
      log,
      everyMs: config.erasureRoundMs,
      batch: config.erasureBatch,
      rememberMs: config.erasedUserRetentionMs,
    });
    closing.push(() => completing.stop());
    const erasureReports = gatherErasureReports({ db, bus, log, completing });
    closing.push(() => erasureReports.stop());
    const standings = createStandings(db, { rememberedMs: config.callersRememberedMs });

    const prekeyLimits = prekeyLimitsOf(config);
    const watch = startWatchingPrekeys(
      { db, limits: prekeyLimits, reminderMs: config.lowPrekeysReminderMs },
      { everyMs: config.prekeyWatchIntervalMs, log },
    );
    closing.push(() => watch.stop());
    const lowPrekeys = createLowPrekeys(db, { reminderMs: config.lowPrekeysReminderMs });
    const peerOptions = { identity: createServiceIdentity(config, service), timeoutMs: config.peerTimeoutMs };
    const conversation = connectPeer(ConversationService, {
      ...peerOptions,
      target: config.peerConversation,
      peer: 'conversation',
    });
    closing.push(() => conversation.close());
    const session = connectPeer(SessionService, { ...peerOptions, target: config.peerSession, peer: 'session' });
    closing.push(() => session.close());
    const redisLimits = new RedisLimits({
      url: config.redisUrl,
      timeoutMs: config.limitsTimeoutMs,
      onError: (error) => log.debug({ err: error }, 'Redis reported an error'),
    });
    closing.push(() => redisLimits.close());
    const rememberMs = config.sharedUsersRememberedMs;
    const sharing = createSharing(conversation, { rememberMs, formerMembers: false });
    // What a former member wrote must stay verifiable: lists and logs are also told to those who are still where the member was.
    const readers = createSharing(conversation, { rememberMs, formerMembers: true });
    const telling = { everyMs: config.gaugesMs, log };
    const gauges = startProcessGauges({ service, bus, database: { db, migrationsFolder }, ...telling });
    closing.push(() => gauges.stop());
    const prekeyGauges = startPrekeyGauges(db, telling);
    closing.push(() => prekeyGauges.stop());
    const readiness = allReady(db.schema.check, bus.readiness);
    const server = await startServer({
      service,
      services: [IdentityKeysService, IdentityKeysOperatorService, DiagnosticsService],
      rpcs: [
        ...[
          registerDevice({
            db,
            writerBuild: build.writerBuild,
            maxDevicesPerUser: config.maxDevicesPerUser,
            maxDevicesEverPerUser: config.maxDevicesEverPerUser,
            maxPrekeysPerPool: config.maxPrekeysPerPool,
            rootKeyReset: config.rootKeyReset,
          }),
          replenishPrekeys({ db, prisma, maxPrekeysPerPool: config.maxPrekeysPerPool, limits: prekeyLimits }),
          claimPrekeyBundles({
            db,
            lowPrekeys,
            lowPrekeysBelow: config.lowPrekeysBelow,
            sharing,
            standings,
            session,
            fence,
            policy: createClaimPolicy({ name: config.claimPolicy, db, sharing }),
            rates: {
              caller: ratePerHour(config.claimsPerCaller, config.claimsPerCallerBurst),
              target: ratePerHour(config.claimsPerTarget, config.claimsPerTargetBurst),
              pair: ratePerHour(config.claimsPerPair, config.claimsPerPairBurst),
            },
            limits: createClaimLimits({ redis: redisLimits, withoutRedis: config.limitsWithoutRedis, log }),
            signals: createDrainSignals({ db, log }),
            maxDevicesPerClaim: config.maxDevicesPerClaim,
            maxRequestBytes: config.claimRequestBytes,
            maxAnswerBytes: config.claimAnswerBytes,
          }),
          setClaimPermission({ db }),
          getDevices({ db, sharing: readers, standings, maxDevicesPerAnswer: config.maxDevicesPerAnswer }),
          listDeviceLog({ db, sharing: readers, standings, maxEntriesPerAnswer: config.maxLogEntriesPerAnswer }),
          revokeDevice({ db, writerBuild: build.writerBuild }),
          changeRootKey({ db, rootKeyReset: config.rootKeyReset, writerBuild: build.writerBuild }),
          setRecovery({ db }),
          getRecovery({ db }),
          listRevokedDevices({ db }),
          getPrekeyStatus({ db, limits: prekeyLimits }),
          rotateSignedPrekey({ db, prisma, limits: prekeyLimits }),
          checkKeys({ db, limits: prekeyLimits }),
          deleteUser({ db, writerBuild: build.writerBuild }),
          getErasure({ db }),
        ].map((rpc) => forLivingUsers(standings, rpc)),
        findDevices({ db }),
        ...diagnosticsRpcs({
          service,
          telemetry,
          bus,
          readiness,
          database: { db, migrationsFolder, fence },
          audit: recordAnswer,
          databaseChecks,
          probes: [
            probeClaimLimitsRedis({
              redis: redisLimits,
              limited: [config.claimsPerCaller, config.claimsPerTarget, config.claimsPerPair].some(
                (limit) => limit > 0,
              ),
              withoutRedis: config.limitsWithoutRedis,
            }),
          ],
        }),
      ],
      config,
      authenticator: createAuthenticator(config),
      telemetry,
      readiness,
      gate: db.schema,
    });
    closing.push(() => server.stop());
    return { grpcPort: server.grpcPort, webPort: server.webPort };
  }

  async function stop() {
    const failures: unknown[] = [];
    for (let close = closing.pop(); close; close = closing.pop())
      await Promise.resolve(close()).catch((error: unknown) => failures.push(error));
    if (failures.length > 0) throw new AggregateError(failures, 'the service did not stop cleanly');
  }

  return {
    async start() {
      try {
        return await start();
      } catch (error) {
        await stop().catch(() => {});
        throw error;
      }
    },
    stop,
  };
}
