import type { SettingsValues } from '@keytrail/settings';
import type { Logger } from '@keytrail/telemetry';
import { type JetStreamClient, jetstream, jetstreamManager } from '@nats-io/jetstream';
import type { NatsConnection } from '@nats-io/nats-core';
import { connect } from '@nats-io/transport-node';
import type { eventSettings } from './settings.ts';
import { ensureTopology } from './topology.ts';

/** The connection of a process to NATS. Reconnects by itself, for ever. */
export interface EventBus {
  readonly connection: NatsConnection;
  readonly jetstream: JetStreamClient;
  readonly log: Logger;
  /** Creates and compares streams and consumers of the catalogue. Throws TopologyMismatch. */
  ensure(): Promise<void>;
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
  let ensured = false;

  async function ensure(): Promise<void> {
    await ensureTopology(manager, { replicas: config.natsReplicas, storage: config.natsStorage });
    ensured = true;
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
        if (ensured) await ensure().catch((error) => log.error({ err: error }, 'streams could not be ensured'));
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
    ensure,
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
