import { join } from 'node:path';
import { type Authenticator, createAuthenticator, createServiceIdentity } from '@keytrail/auth';
import { DiagnosticsService, SessionOperatorService, SessionService } from '@keytrail/contracts';
import { diagnosticsRpcs, startProcessGauges } from '@keytrail/diagnosis';
import {
  type Consumer,
  connectEvents,
  type EventBus,
  pullRevocations,
  type Relay,
  type Rounds,
  type RunningFence,
  startRelay,
  startRestoreFence,
} from '@keytrail/events';
import { allReady, type Rpc, type RunningServer, startServer } from '@keytrail/rpc';
import { type Database, migrationNames, openDatabase } from '@keytrail/storage';
import { startTelemetry, type Telemetry } from '@keytrail/telemetry';
import { databaseChecks } from './checks/index.ts';
import type { SessionConfig } from './config.ts';
import { dispatchDueRequests } from './consumers/dispatch-due.ts';
import { eraseUsers } from './consumers/erase-users.ts';
import { noteRevokedDevices } from './consumers/note-revoked-devices.ts';
import { resumeForHolder } from './consumers/resume-for-holder.ts';
import type { Dispatcher } from './dispatch-key-request.ts';
import { startForgetting } from './jobs/forget-old-ids.ts';
import { startSweep } from './jobs/sweep-key-requests.ts';
import { startKeyRequestGauges } from './key-request-metrics.ts';
import { connectOperatorPeers } from './operator-peers.ts';
import type { Parts } from './parts.ts';
import { connectPeers } from './peers.ts';
import { ackKey } from './rpc/ack-key.ts';
import { cancelKeyRequest } from './rpc/cancel-key-request.ts';
import { checkOffer } from './rpc/check-offer.ts';
import { declineOffer } from './rpc/decline-offer.ts';
import { discardSession } from './rpc/discard-session.ts';
import { fulfillKeyRequest } from './rpc/fulfill-key-request.ts';
import { fulfillKeyRequests } from './rpc/fulfill-key-requests.ts';
import { getInitialSession } from './rpc/get-initial-session.ts';
import { getKeysWaiting } from './rpc/get-keys-waiting.ts';
import { listKeyChanges } from './rpc/list-key-changes.ts';
import { listKeyRequests } from './rpc/list-key-requests.ts';
import { endKeyRequest } from './rpc/operator/end-key-request.ts';
import { explainKey } from './rpc/operator/explain-key.ts';
import { findKeyRequests } from './rpc/operator/find-key-requests.ts';
import { findSessions } from './rpc/operator/find-sessions.ts';
import { nudgeKeyRequest } from './rpc/operator/nudge-key-request.ts';
import { replayKeyRequest } from './rpc/operator/replay-key-request.ts';
import { rejectKey } from './rpc/reject-key.ts';
import { requestKey } from './rpc/request-key.ts';
import { requestKeys } from './rpc/request-keys.ts';
import { storeSession } from './rpc/store-session.ts';
import { recordAudit } from './store/audit-log.ts';
import { PrismaClient } from './store/generated/client.ts';
import { noteRevokedDevices as takeRevokedDevices } from './store/revoked-devices.ts';

export { readConfig, type SessionConfig, sessionSettings } from './config.ts';

/** What tests may replace. */
export interface Overrides {
  readonly telemetry?: Telemetry;
  readonly authenticator?: Authenticator;
  /** By default all; tests show what works with less. */
  readonly run?: { readonly consumers?: boolean; readonly sweep?: boolean };
}

export interface SessionServiceProcess {
  readonly db: Database;
  start(): Promise<{ grpcPort: number; webPort: number }>;
  /** Drains calls, then stops consumers, jobs and relay, then closes what they used. Safe to call twice. */
  stop(): Promise<void>;
}

export const migrationsFolder = join(import.meta.dirname, '../prisma/migrations');

/** The service session, wired. Nothing is connected before `start`. */
export function createSession(config: SessionConfig, overrides: Overrides = {}): SessionServiceProcess {
  const telemetry = overrides.telemetry ?? startTelemetry({ service: 'session', config });
  const { log } = telemetry;
  const db = openDatabase({
    url: config.databaseUrl,
    service: 'session',
    connections: config.databaseConnections,
    statementTimeoutMs: config.statementTimeoutMs,
    planOnce: true,
    migrations: migrationsFolder,
  });
  const prisma = new PrismaClient({ adapter: db.prismaAdapter() });
  const identity = createServiceIdentity(config, 'session');
  const peers = connectPeers(config, identity);
  const operatorPeers = connectOperatorPeers(config, identity);
  const parts: Parts = {
    db,
    prisma,
    peers,
    operatorPeers,
    config,
    log,
    writerBuild: telemetry.build.writerBuild,
    writerSchema: migrationNames(migrationsFolder).at(-1) ?? '',
  };
  const dispatcher: Dispatcher = { db, peers, policy: config, log, isHeard: () => relay?.isFlowing() ?? false };

  let bus: EventBus | undefined;
  let server: RunningServer | undefined;
  let relay: Relay | undefined;
  let fence: RunningFence | undefined;
  let consumers: Pick<Consumer, 'ready' | 'stop'>[] = [];
  let sweep: Rounds | undefined;
  let pull: Rounds | undefined;
  let forgetting: { stop(): Promise<void> } | undefined;
  let gauges: { stop(): Promise<void> }[] = [];
  let stopped: Promise<void> | undefined;

  async function start(): Promise<{ grpcPort: number; webPort: number }> {
    // Before anything else is asked or written; when it cannot be found out yet, the watch over readiness does.
    await db.schema.check().catch(() => {});
    bus = await connectEvents({ config, log, name: 'session' });
    await bus.ensure();
    const running = await startRestoreFence({ db, bus, log, config });
    fence = running;
    relay = startRelay({ db, bus, service: 'session', log });
    if (overrides.run?.consumers ?? true) consumers = [...startConsumers(dispatcher, bus), eraseUsers(parts, bus)];
    if (overrides.run?.sweep ?? true) sweep = startSweep(dispatcher, config.sweepMs);
    pull = pullRevocations({
      db,
      identityKeys: peers.identityKeys,
      log,
      everyMs: config.revocationsPullMs,
      note: takeRevokedDevices,
    });
    forgetting = startForgetting(db, log, {
      everyMs: config.purgeIntervalMs,
      endedKeyRequestRetentionMs: config.endedKeyRequestRetentionMs,
      auditLogRetentionMs: config.auditLogRetentionMs,
    });
    await Promise.all(consumers.map(({ ready }) => ready));
    const telling = { everyMs: config.gaugesMs, log };
    gauges = [
      startProcessGauges({ service: 'session', bus, database: { db, migrationsFolder }, ...telling }),
      startKeyRequestGauges(db, telling),
    ];
    const readiness = allReady(db.schema.check, bus.readiness);
    server = await startServer({
      service: 'session',
      services: [SessionService, SessionOperatorService, DiagnosticsService],
      rpcs: [
        ...rpcs(parts),
        ...diagnosticsRpcs({
          service: 'session',
          telemetry,
          bus,
          readiness,
          database: { db, migrationsFolder, fence: running },
          audit: recordAudit,
          databaseChecks,
        }),
      ],
      config,
      authenticator: overrides.authenticator ?? createAuthenticator(config),
      telemetry,
      readiness,
      gate: db.schema,
    });
    const { grpcPort, webPort } = server;
    return { grpcPort, webPort };
  }

  async function stop(): Promise<void> {
    try {
      await server?.stop();
      await Promise.all([...consumers, sweep, pull, forgetting, ...gauges].map((running) => running?.stop()));
      await relay?.stop();
      await fence?.stop();
      await bus?.close();
    } finally {
      peers.close();
      operatorPeers.close();
      await prisma.$disconnect();
      await db.close();
      await telemetry.shutdown();
    }
  }

  return {
    db,
    start,
    stop() {
      stopped ??= stop();
      return stopped;
    },
  };
}

function rpcs(parts: Parts): Rpc[] {
  return [
    storeSession(parts),
    discardSession(parts),
    getInitialSession(parts),
    requestKey(parts),
    requestKeys(parts),
    rejectKey(parts),
    fulfillKeyRequest(parts),
    fulfillKeyRequests(parts),
    declineOffer(parts),
    ackKey(parts),
    cancelKeyRequest(parts),
    checkOffer(parts),
    listKeyRequests(parts),
    listKeyChanges(parts),
    getKeysWaiting(parts),
    findKeyRequests(parts),
    nudgeKeyRequest(parts),
    endKeyRequest(parts),
    replayKeyRequest(parts),
    findSessions(parts),
    explainKey(parts),
  ];
}

function startConsumers(dispatcher: Dispatcher, bus: EventBus): Consumer[] {
  return [dispatchDueRequests(dispatcher, bus), resumeForHolder(dispatcher, bus), noteRevokedDevices(dispatcher, bus)];
}
