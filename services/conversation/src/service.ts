import { join } from 'node:path';
import { createAuthenticator, createServiceIdentity } from '@keytrail/auth';
import {
  ConversationOperatorService,
  ConversationService,
  DiagnosticsService,
  IdentityKeysService,
  PresenceService,
  SessionService,
} from '@keytrail/contracts';
import { diagnosticsRpcs, startProcessGauges } from '@keytrail/diagnosis';
import { connectEvents, pullRevocations, startRelay, startRestoreFence } from '@keytrail/events';
import { allReady, connectPeer, startServer } from '@keytrail/rpc';
import { openDatabase } from '@keytrail/storage';
import { startTelemetry, type Telemetry } from '@keytrail/telemetry';
import { databaseChecks } from './checks/index.ts';
import type { ConversationConfig } from './config.ts';
import { askAttachedDevices } from './consumers/ask-attached-devices.ts';
import { eraseUsers } from './consumers/erase-users.ts';
import { noteChangedDevices } from './consumers/note-changed-devices.ts';
import { type AtFaultPoint, dieAt } from './fault-points.ts';
import { askForRotations } from './jobs/ask-for-rotations.ts';
import { forgetOldIds } from './jobs/forget-old-ids.ts';
import { reachConversations } from './jobs/reach-conversations.ts';
import { type Reconciled, reconcileCandidates, startReconciling } from './jobs/reconcile-candidates.ts';
import type { Parts } from './parts.ts';
import { deviceDirectory } from './peers/device-directory.ts';
import { addMembers } from './rpc/add-members.ts';
import { changePolicy } from './rpc/change-policy.ts';
import { changeRoles } from './rpc/change-roles.ts';
import { checkEntitlement } from './rpc/check-entitlement.ts';
import { checkEntitlements } from './rpc/check-entitlements.ts';
import { createConversation } from './rpc/create-conversation.ts';
import { declineRotation } from './rpc/decline-rotation.ts';
import { forActiveDevices } from './rpc/for-active-devices.ts';
import { getConversation } from './rpc/get-conversation.ts';
import { getConversationsWaiting } from './rpc/get-conversations-waiting.ts';
import { getRotation } from './rpc/get-rotation.ts';
import { listChanges } from './rpc/list-changes.ts';
import { listConversations } from './rpc/list-conversations.ts';
import { listMessages } from './rpc/list-messages.ts';
import { listRosterChanges } from './rpc/list-roster-changes.ts';
import { listSessions } from './rpc/list-sessions.ts';
import { listSharedUsers } from './rpc/list-shared-users.ts';
import { describeConversation } from './rpc/operator/describe-conversation.ts';
import { removeMembers } from './rpc/remove-members.ts';
import { requestRotation } from './rpc/request-rotation.ts';
import { rotateSession } from './rpc/rotate-session.ts';
import { sendMessage } from './rpc/send-message.ts';
import { recordAudit } from './store/audit-log.ts';
import { PrismaClient } from './store/generated/client.ts';
import { noteRevokedDevices } from './store/revoked-devices.ts';

export { type ConversationConfig, conversationSettings, readConfig } from './config.ts';
export { type AtFaultPoint, type FaultPoint, faultPoints } from './fault-points.ts';

const service = 'conversation';

/** Where the migrations of this service are. */
export const migrationsFolder = join(import.meta.dirname, '../prisma/migrations');

export interface ConversationServer {
  start(): Promise<{ grpcPort: number; webPort: number }>;
  /** One round of the reconciler, now. */
  reconcile(ageMs?: number): Promise<Reconciled>;
  /** Drains the calls, then closes what they used. */
  stop(): Promise<void>;
}

/** The only seams for tests. */
export interface ConversationOverrides {
  readonly telemetry?: Telemetry;
  readonly atFaultPoint?: AtFaultPoint;
}

/** The service with everything it is made of. */
export function createConversationServer(
  config: ConversationConfig,
  overrides: ConversationOverrides = {},
): ConversationServer {
  const closing: (() => Promise<unknown> | unknown)[] = [];
  let reconcile = (_ageMs: number): Promise<Reconciled> => Promise.reject(new Error('the service has not started'));

  async function start() {
    const telemetry = overrides.telemetry ?? startTelemetry({ service, config });
    if (!overrides.telemetry) closing.push(() => telemetry.shutdown());
    const { log, build } = telemetry;

    const db = openDatabase({
      url: config.databaseUrl,
      service,
      connections: config.databaseConnections,
      statementTimeoutMs: config.statementTimeoutMs,
      planOnce: true,
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
    const fence = await startRestoreFence({ db, bus, log, config });
    closing.push(() => fence.stop());
    const relay = startRelay({ db, bus, service, log });
    closing.push(() => relay.stop());

    const identity = createServiceIdentity(config, service);
    const timeoutMs = config.peerTimeoutMs;
    const identityKeys = connectPeer(IdentityKeysService, {
      target: config.identityKeys,
      identity,
      peer: 'identity-keys',
      timeoutMs,
    });
    closing.push(() => identityKeys.close());
    const sessions = connectPeer(SessionService, { target: config.session, identity, peer: 'session', timeoutMs });
    closing.push(() => sessions.close());
    const presence = connectPeer(PresenceService, { target: config.presence, identity, peer: 'presence', timeoutMs });
    closing.push(() => presence.close());

    const parts: Parts = {
      db,
      prisma,
      sessions,
      devices: deviceDirectory(identityKeys, { size: config.signingKeyCacheSize, ttlMs: config.signingKeyCacheMs }),
      sessionBounds: { messages: config.rotationMaxMessages, ageMs: config.rotationMaxAgeMs },
      writerBuild: build.writerBuild,
      atFaultPoint: overrides.atFaultPoint ?? dieAt(config.faultPoint),
    };

    reconcile = (ageMs) => reconcileCandidates(parts, ageMs, log);
    const reconciling = startReconciling(() => reconcile(config.candidateAgeMs), log, config.reconcileIntervalMs);
    closing.push(() => reconciling.stop());
    const forgetting = forgetOldIds(db, log, {
      everyMs: config.purgeIntervalMs,
      auditLogRetentionMs: config.auditLogRetentionMs,
    });
    closing.push(() => forgetting.stop());

    const reach = reachConversations({ ...parts, log }, config.revocationsPullMs);
    closing.push(() => reach.stop());
    const pull = pullRevocations({
      db,
      identityKeys,
      log,
      everyMs: config.revocationsPullMs,
      note: noteRevokedDevices,
      noted: reach.soon,
    });
    closing.push(() => pull.stop());
    const changedDevices = noteChangedDevices({ db, bus, reach, log });
    closing.push(() => changedDevices.stop());
    const policy = {
      askMs: config.rotationAskMs,
      retryMs: config.rotationRetryMs,
      graceMs: config.rotationGraceMs,
    };
    const asking = askForRotations({ db, presence, log, policy }, config.rotationSweepMs);
    closing.push(() => asking.stop());
    const attached = askAttachedDevices({ db, bus, asking, log });
    closing.push(() => attached.stop());
    const erasing = eraseUsers({ ...parts, bus, log, config });
    closing.push(() => erasing.stop());

    const gauges = startProcessGauges({
      service,
      bus,
      database: { db, migrationsFolder },
      everyMs: config.gaugesMs,
      log,
    });
    closing.push(() => gauges.stop());
    const readiness = allReady(db.schema.check, bus.readiness);
    const server = await startServer({
      service,
      services: [ConversationService, ConversationOperatorService, DiagnosticsService],
      rpcs: [
        ...[
          createConversation(parts),
          rotateSession(parts),
          requestRotation(parts),
          addMembers(parts),
          removeMembers(parts),
          changeRoles(parts),
          changePolicy(parts),
          listRosterChanges(parts),
          getConversation(parts),
          listConversations(parts),
          sendMessage(parts),
          listMessages(parts),
          getRotation(parts),
          declineRotation(parts, asking),
          listSessions(parts),
          listChanges(parts),
        ].map((rpc) => forActiveDevices(parts, rpc)),
        getConversationsWaiting(parts),
        checkEntitlement(parts),
        checkEntitlements(parts),
        listSharedUsers(parts),
        describeConversation(parts),
        ...diagnosticsRpcs({
          service,
          telemetry,
          bus,
          readiness,
          database: { db, migrationsFolder, fence },
          audit: recordAudit,
          databaseChecks,
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
    for (let close = closing.pop(); close; close = closing.pop()) {
      try {
        await close();
      } catch (error) {
        failures.push(error);
      }
    }
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
    reconcile: (ageMs = config.candidateAgeMs) => reconcile(ageMs),
    stop,
  };
}
