import { type Authenticator, createAuthenticator, createServiceIdentity } from '@keytrail/auth';
import {
  ConversationService,
  DiagnosticsService,
  IdentityKeysService,
  PresenceOperatorService,
  PresenceService,
  SessionService,
} from '@keytrail/contracts';
import { diagnosticsRpcs, startProcessGauges } from '@keytrail/diagnosis';
import {
  connectEvents,
  consumers,
  deviceListChanged,
  notificationRequested,
  on,
  startConsumer,
  userErasureRequested,
  warnSparingly,
} from '@keytrail/events';
import { allReady, connectPeer, startServer } from '@keytrail/rpc';
import { report, startTelemetry } from '@keytrail/telemetry';
import { presenceProbes } from './checks/index.ts';
import type { PresenceConfig } from './config.ts';
import { endRevokedDevice } from './consumers/end-revoked-devices.ts';
import { eraseUser } from './consumers/erase-users.ts';
import { notifyDevices } from './consumers/notify-devices.ts';
import { atMost, standingFrom } from './device-standing.ts';
import { Admission, spreadReturns } from './domain/admission.ts';
import { Gateway } from './gateway.ts';
import { askAgain } from './jobs/ask-again.ts';
import { followRevocations } from './jobs/follow-revocations.ts';
import { endExpiredTokens, endSilentDevices, healDevices, keepLease, sweepDevices } from './jobs/gateway-jobs.ts';
import { attach } from './rpc/attach.ts';
import { heartbeat } from './rpc/heartbeat.ts';
import { listOnline } from './rpc/list-online.ts';
import { describeGateways } from './rpc/operator/describe-gateways.ts';
import { findAttached } from './rpc/operator/find-attached.ts';
import { LeaseStore } from './store/lease-store.ts';
import { askConversationsWaiting, askKeysWaiting } from './waiting.ts';

export interface RunningPresence {
  readonly grpcPort: number;
  readonly webPort: number;
  stop(): Promise<void>;
}

/** The only seam for tests. */
export interface PresenceOverrides {
  readonly authenticator?: Authenticator;
}

/** Composition root: everything that presence is made of, wired in one place. */
export async function startPresence(
  config: PresenceConfig,
  overrides: PresenceOverrides = {},
): Promise<RunningPresence> {
  const telemetry = startTelemetry({ service: 'presence', config });
  const { log } = telemetry;
  const bus = await connectEvents({ config, log, name: 'presence' });
  await bus.ensure();
  const leases = new LeaseStore({
    url: config.redisUrl,
    clusterUrls: config.redisCluster,
    deviceTtlMs: config.sweepMs * 3,
    onError: (error) => log.warn({ err: error }, 'Redis reported an error'),
  });
  const gateway = new Gateway({ leases, bus, leaseMs: config.gatewayLeaseMs, log });
  await gateway.open();
  const identity = createServiceIdentity(config, 'presence');
  const timeoutMs = config.peerTimeoutMs;
  const conversation = connectPeer(ConversationService, {
    target: config.peerConversation,
    identity,
    peer: 'conversation',
    timeoutMs,
  });
  const session = connectPeer(SessionService, { target: config.peerSession, identity, peer: 'session', timeoutMs });
  const identityKeys = connectPeer(IdentityKeysService, {
    target: config.peerIdentityKeys,
    identity,
    peer: 'identity-keys',
    timeoutMs,
  });
  const ask = standingFrom(
    identityKeys,
    config.standingTimeoutMs,
    warnSparingly(log, 'identity-keys could not be asked about a device that attached; it is asked again'),
  );
  const revocations = followRevocations({ gateway, identityKeys, log }, config.revocationsPullMs);
  const standings = askAgain({ gateway, ask, log }, config.revocationsPullMs);

  const notifier = startConsumer({
    bus,
    consumer: consumers.presenceNotifier,
    handlers: Object.assign(
      {},
      ...Object.values(notificationRequested).map((type) =>
        on(type, (requested) => notifyDevices({ gateway, leases }, requested)),
      ),
    ),
    log,
  });
  const revocationEvents = startConsumer({
    bus,
    consumer: consumers.presenceDevices,
    handlers: on(deviceListChanged, (changed) => endRevokedDevice({ gateway, leases }, changed)),
    log,
  });
  const erasures = startConsumer({
    bus,
    consumer: consumers.presenceErasure,
    handlers: on(userErasureRequested, (requested) => eraseUser({ gateway, leases, bus, log }, requested)),
    log,
  });
  const stopReporting = report(['attachedDevices'], (observe) => observe('attachedDevices', gateway.attachments.size));
  const gauges = startProcessGauges({ service: 'presence', bus, everyMs: config.gaugesMs, log });
  const healing = healDevices(gateway, config.gatewayRenewMs, log);
  const jobs = [
    keepLease(gateway, config.gatewayRenewMs, healing, log),
    healing,
    sweepDevices(gateway, config.sweepMs, log),
    endSilentDevices(gateway, config.heartbeatIntervalMs, log),
    endExpiredTokens(gateway, log),
  ];

  const readiness = allReady(async () => {
    try {
      await leases.ping();
      return { ready: true };
    } catch {
      return { ready: false, why: 'Redis does not answer' };
    }
  }, bus.readiness);
  const server = await startServer({
    service: 'presence',
    services: [PresenceService, PresenceOperatorService, DiagnosticsService],
    rpcs: [
      attach({
        gateway,
        bus,
        ask: atMost(config.standingsAtOnce, ask),
        keysWaiting: askKeysWaiting(session, {
          timeoutMs: config.waitingTimeoutMs,
          atOnce: config.waitingAtOnce,
          failed: warnSparingly(log, 'session could not be asked what waits for a device; it was greeted without'),
        }),
        conversationsWaiting: askConversationsWaiting(conversation, {
          timeoutMs: config.waitingTimeoutMs,
          atOnce: config.waitingAtOnce,
          failed: warnSparingly(log, 'conversation could not be asked what waits for a device; it was greeted without'),
        }),
        admission: new Admission({ perSecond: config.attachesPerSecond, atOnce: config.attachesAtOnce }),
        attachLimit: `${config.attachesPerSecond} attaches per second, ${config.attachesAtOnce} at once`,
        nextReturn: spreadReturns(config.attachesPerSecond),
        heartbeatIntervalMs: config.heartbeatIntervalMs,
        maxAttachments: config.maxAttachments,
        maxQueuedNotifications: config.maxQueuedNotifications,
      }),
      heartbeat({ gateway }),
      listOnline({ leases, conversation }),
      findAttached({ leases }),
      describeGateways({ leases, gateway }),
      ...diagnosticsRpcs({
        service: 'presence',
        telemetry,
        bus,
        readiness,
        probes: presenceProbes({ leases, gateway }),
      }),
    ],
    config,
    authenticator: overrides.authenticator ?? createAuthenticator(config),
    telemetry,
    readiness,
  });

  return {
    grpcPort: server.grpcPort,
    webPort: server.webPort,
    async stop() {
      await server.stop();
      await Promise.all([notifier.stop(), revocationEvents.stop(), erasures.stop()]);
      await Promise.all([revocations.stop(), standings.stop()]);
      await Promise.all([...jobs, gauges].map((job) => job.stop()));
      stopReporting();
      // Without Redis its lease runs out by itself.
      await gateway.close().catch((error: unknown) => log.warn({ err: error }, 'the gateway lease was not given back'));
      conversation.close();
      session.close();
      identityKeys.close();
      await bus.close();
      leases.close();
      await telemetry.shutdown();
    },
  };
}
