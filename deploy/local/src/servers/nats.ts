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
  /** Whether every acknowledged message is on disk before its acknowledgement (`sync_interval: always`). Default false. */
  readonly fsync?: boolean;
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

function configuration(name: string, port: number, folder: string, options: NatsOptions): string {
  return `server_name: ${JSON.stringify(name)}
listen: "127.0.0.1:${port}"
jetstream {
  store_dir: ${JSON.stringify(`${folder}/jetstream`)}
  ${options.fsync === true ? 'sync_interval: always' : ''}
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
  if (options.fsync === true) throw new Error('fsync is not supported for NATS in Docker: install nats-server');
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
