import { randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { connect } from '@nats-io/transport-node';
import { installNats } from '../toolchain/nats-package.ts';
import { startContainer } from './container.ts';
import { environmentServer } from './environment-server.ts';
import { makeInstanceFolder } from './instance-folder.ts';
import { startOwnServer } from './own-server.ts';
import { findPrograms, firstSuitable, type Program } from './programs-on-path.ts';
import type { Origin, ServerHandle, ServerOptions } from './server.ts';
import { firstAvailable } from './ways.ts';

export interface NatsOptions extends ServerOptions {
  /**
   * When JetStream syncs what it has acknowledged to the disk: `always`, before the acknowledgement, or a duration such as `2m`, which is
   * how much a power cut may lose. Default: `KEYTRAIL_NATS_SYNC_INTERVAL`, else the server's own, 2m.
   */
  readonly syncInterval?: string;
  /** Port of 127.0.0.1 for the server's monitoring (`/varz`, `/jsz`); none by default. */
  readonly monitorPort?: number;
}

const oldest = '2.10.4';

/**
 * A NATS server with JetStream, without authentication, on 127.0.0.1. From `KEYTRAIL_NATS_URL`, the machine's own program,
 * the toolchain folder, or Docker.
 */
export function ensureNats(options: NatsOptions = {}): Promise<ServerHandle> {
  return firstAvailable(
    {
      kind: 'nats',
      advice: `Install nats-server ${oldest} or newer (Debian 13 or newer: nats-server; macOS: brew install nats-server; or Go), or set KEYTRAIL_NATS_URL.`,
      environment: (url) =>
        environmentServer({ kind: 'nats', url, oldest, readVersion: readServerVersion, defaultPort: 4222 }),
      path: async () =>
        startNats(await firstSuitable('nats-server', oldest, findPrograms(['nats-server'])), 'path', options),
      toolchain: async () => startNats(await installNats(oldest), 'toolchain', options),
      docker: () => startNatsContainer(options),
    },
    options,
  );
}

function startNats(program: Program, origin: Origin, options: NatsOptions): Promise<ServerHandle> {
  const folder = makeInstanceFolder('nats');
  const name = `keytrail-${randomUUID()}`;
  const url = (port: number) => `nats://127.0.0.1:${port}`;
  return startOwnServer({
    kind: 'nats',
    origin,
    version: program.version,
    folder,
    program: program.path,
    env: program.env,
    detached: options.detached === true,
    stored: 'jetstream',
    haltSignal: 'SIGTERM',
    stopSignal: 'SIGTERM',
    url,
    args: async (port) => {
      await writeFile(`${folder}/nats.conf`, configuration(name, port, folder, options));
      return ['--config', `${folder}/nats.conf`];
    },
    probe: async (port) => {
      await readServerVersion(url(port), name);
    },
  });
}

function syncIntervalOf({ syncInterval = process.env.KEYTRAIL_NATS_SYNC_INTERVAL || undefined }: NatsOptions) {
  if (syncInterval === undefined || /^(always|\d+(ms|s|m|h))$/.test(syncInterval)) return syncInterval;
  throw new Error(
    `KEYTRAIL_NATS_SYNC_INTERVAL must be always or a duration such as 10s, not ${JSON.stringify(syncInterval)}`,
  );
}

function configuration(name: string, port: number, folder: string, options: NatsOptions): string {
  const syncInterval = syncIntervalOf(options);
  return `server_name: ${JSON.stringify(name)}
listen: "127.0.0.1:${port}"
${options.monitorPort ? `http: "127.0.0.1:${options.monitorPort}"` : ''}
jetstream {
  store_dir: ${JSON.stringify(`${folder}/jetstream`)}
  ${syncInterval ? `sync_interval: ${syncInterval}` : ''}
}
`;
}

/** Connects once; throws unless JetStream is on and, with a name, the server is the one of that name. */
async function readServerVersion(url: string, name?: string): Promise<string> {
  const connection = await connect({ servers: url, reconnect: false, timeout: 5000, maxReconnectAttempts: 0 });
  try {
    const info = connection.info;
    if (info === undefined) throw new Error('it told nothing about itself');
    if (name !== undefined && info.server_name !== name)
      throw new Error(`address already in use by NATS server ${info.server_name}`);
    if (info.jetstream !== true) throw new Error('JetStream is not on');
    return info.version;
  } finally {
    await connection.close();
  }
}

function startNatsContainer(options: NatsOptions): Promise<ServerHandle> {
  if (syncIntervalOf(options))
    throw new Error('a sync interval is not supported for NATS in Docker: install nats-server');
  return startContainer({
    kind: 'nats',
    image: process.env.KEYTRAIL_NATS_IMAGE || 'nats:2.12',
    containerPort: 4222,
    detached: options.detached === true,
    env: {},
    command: ['--jetstream', '--store_dir', '/data'],
    url: (port) => `nats://127.0.0.1:${port}`,
    readVersion: readServerVersion,
  });
}
