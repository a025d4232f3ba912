import type { SettingsValues } from '@keytrail/settings';
import type { Logger } from '@keytrail/telemetry';
import { type JetStreamClient, jetstream, jetstreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/nats-core';
import { connect } from '@nats-io/transport-node';
import type { ReplayLetter } from './dead-letters.ts';
import type { eventSettings } from './settings.ts';
import {
  type ConsumerLag,
  compareTopology,
  ensureTopology,
  readConsumerLags,
  type TopologyDifference,
  type TopologyReport,
} from './topology.ts';

/** The connection of a process to NATS. Reconnects by itself, for ever. */
export interface EventBus {
  readonly connection: NatsConnection;
  readonly jetstream: JetStreamClient;
  readonly log: Logger;
  /** How long a handler may take without a sign of life before the event goes to another replica. */
  readonly ackWaitMs: number;
  /** Creates streams and consumers of the catalogue, mends those that differ, and tells what it found. Runs once at a time. */
  ensure(): Promise<TopologyReport>;
  /** Not ready while something differs from the catalogue that cannot be mended; `why` names each difference. Looks again then. */
  readiness(): Promise<{ ready: boolean; why?: string }>;
  /** How the live server differs from the catalogue now; changes nothing. Throws while NATS does not answer. */
  differences(): Promise<TopologyDifference[]>;
  /** What `ensure` mended last in this process, when it did. */
  lastMended(): { readonly at: Date; readonly what: readonly string[] } | undefined;
  /** How far the consumers of the catalogue are behind. Throws while NATS does not answer. */
  consumerLags(): Promise<ConsumerLag[]>;
  /** How to replay dead letters, by the name of the consumer: of those that run in this process, which name themselves here. */
  readonly replays: Map<string, ReplayLetter>;
  isConnected(): boolean;
  /** Calls back after each reconnect; returns how to stop that. */
  onReconnect(run: () => void): () => void;
  /** Sends what is buffered, then closes. */
  close(): Promise<void>;
}

export interface EventBusOptions {
  readonly config: SettingsValues<typeof eventSettings>;
  readonly log: Logger;
  /** Shown by NATS as the name of the connection. */
  readonly name?: string;
}

const oldestServer = [2, 10, 4] as const;

/** Connects once (it throws when that fails) and refuses servers older than 2.10.4, which ignore settings silently. */
export async function connectEvents({ config, log, name = 'keytrail' }: EventBusOptions): Promise<EventBus> {
  const urls = config.natsUrl
    .split(',')
    .map((text) => new URL(text.includes('://') ? text.trim() : `nats://${text.trim()}`));
  const { username, password } = urls[0] as URL;
  const connection = await connect({
    servers: urls.map(({ host }) => host),
    name,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 100,
    reconnectJitter: 100,
    pingInterval: 10_000,
    ...(username && { user: decodeURIComponent(username) }),
    ...(password && { pass: decodeURIComponent(password) }),
    ...(urls.some(({ protocol }) => protocol === 'tls:') && { tls: {} }),
  });
  try {
    assertVersion(connection.info?.version ?? '');
  } catch (error) {
    await connection.close();
    throw error;
  }
  const manager = await jetstreamManager(connection, { checkAPI: false });
  const reconnected = new Set<() => void>();
  let connected = true;
  const ackWaitMs = config.natsAckWaitMs;
  let report: TopologyReport | undefined;
  let mended: { readonly at: Date; readonly what: readonly string[] } | undefined;
  let ensuring: Promise<TopologyReport> | undefined;
  let told = '';

  const topology = {
    replicas: config.natsReplicas,
    storage: config.natsStorage,
    maxBytes: config.natsMaxBytes,
    ackWaitMs,
  };

  async function compare(): Promise<TopologyReport> {
    // At the first time what is missing was never there; later it was lost, with what was in it.
    const lost = report ? await compareTopology(manager, topology) : [];
    const found = await ensureTopology(manager, topology);
    report = found;
    if (lost.length > 0)
      mended = { at: new Date(), what: lost.map(({ subject, what }) => `${subject}: ${what || 'was missing'}`) };
    if (found.mended.length > 0) log.info({ mended: found.mended }, 'NATS was brought back to the catalogue');
    const now = JSON.stringify([found.unmended, found.foreign]);
    if (now === told) return found;
    told = now;
    if (found.foreign.length > 0)
      log.warn({ foreign: found.foreign }, 'NATS has more than the catalogue; it is left alone');
    if (found.unmended.length > 0) log.error({ differences: found.unmended }, 'NATS differs from the catalogue');
    return found;
  }

  function ensure(): Promise<TopologyReport> {
    ensuring ??= compare().finally(() => {
      ensuring = undefined;
    });
    return ensuring;
  }

  // While NATS is away writes go on, so that alone is no reason; what it was when it was last seen stays.
  async function readiness(): Promise<{ ready: boolean; why?: string }> {
    if (report && report.unmended.length > 0 && connected) await ensure().catch(() => {});
    const differences = report?.unmended ?? [];
    return differences.length === 0
      ? { ready: true }
      : { ready: false, why: `NATS differs from the catalogue: ${differences.join('; ')}` };
  }

  async function follow(): Promise<void> {
    for await (const status of connection.status()) {
      if (status.type === 'disconnect') {
        connected = false;
        log.warn('NATS is away; events wait in the outbox');
      } else if (status.type === 'reconnect') {
        connected = true;
        log.info('NATS is back');
        // It may be another server, or one that lost its disk.
        if (report) await ensure().catch((error) => log.error({ err: error }, 'streams could not be ensured'));
        for (const run of reconnected) run();
      } else if (status.type === 'error') {
        log.warn({ err: status.error }, 'NATS reported an error');
      }
    }
    connected = false;
  }
  void follow();

  return {
    connection,
    jetstream: jetstream(connection),
    log,
    ackWaitMs,
    ensure,
    readiness,
    differences: () => compareTopology(manager, topology),
    lastMended: () => mended,
    consumerLags: () => readConsumerLags(manager),
    replays: new Map(),
    isConnected: () => connected,
    onReconnect(run) {
      reconnected.add(run);
      return () => reconnected.delete(run);
    },
    async close() {
      if (connected && !connection.isClosed()) await connection.drain();
      else await connection.close();
    },
  };
}

function assertVersion(version: string): void {
  const parts = version.split(/[.-]/).map(Number);
  for (const [at, least] of oldestServer.entries()) {
    const part = parts[at] ?? 0;
    if (part > least) return;
    if (part < least)
      throw new Error(`NATS server ${version} is too old: ${oldestServer.join('.')} or newer is needed`);
  }
}
