import { randomBytes } from 'node:crypto';
import { Redis } from 'ioredis';
import { installRedis } from '../toolchain/redis-package.ts';
import { startContainer } from './container.ts';
import { environmentServer } from './environment-server.ts';
import { makeInstanceFolder } from './instance-folder.ts';
import { startOwnServer } from './own-server.ts';
import { findPrograms, firstSuitable, type Program } from './programs-on-path.ts';
import type { Origin, ServerHandle, ServerOptions } from './server.ts';
import { firstAvailable } from './ways.ts';

export interface RedisOptions extends ServerOptions {
  /** Further server settings, such as `{ maxmemory: '64mb' }`. */
  readonly settings?: Readonly<Record<string, string>>;
}

const oldest = '6.2';

/**
 * A Redis (or Valkey) that keeps nothing on disk: after `restart` it is empty. From `KEYTRAIL_REDIS_URL`, the machine's
 * own program, the toolchain folder, or Docker.
 */
export function ensureRedis(options: RedisOptions = {}): Promise<ServerHandle> {
  return firstAvailable(
    {
      kind: 'redis',
      advice: `Install Redis ${oldest} or newer (Debian, Ubuntu: redis-server; macOS: brew install redis) or Valkey, or set KEYTRAIL_REDIS_URL.`,
      environment: (url) => environmentServer({ kind: 'redis', url, oldest, readVersion, defaultPort: 6379 }),
      path: async () => {
        const program = await firstSuitable(
          'redis-server or valkey-server',
          oldest,
          findPrograms(['redis-server', 'valkey-server']),
        );
        return startRedis(program, 'path', options);
      },
      toolchain: async () => startRedis(await installRedis(oldest), 'toolchain', options),
      docker: () => startRedisContainer(options),
    },
    options,
  );
}

function startRedis(program: Program, origin: Origin, options: RedisOptions): Promise<ServerHandle> {
  const password = randomBytes(18).toString('hex');
  const url = (port: number) => `redis://:${password}@127.0.0.1:${port}`;
  const folder = makeInstanceFolder('redis');
  return startOwnServer({
    kind: 'redis',
    origin,
    version: program.version,
    folder,
    program: program.path,
    env: program.env,
    detached: options.detached === true,
    haltSignal: 'SIGTERM',
    stopSignal: 'SIGTERM',
    url,
    args: (port) => ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, ...settingsOf(password, options)],
    probe: async (port) => {
      await readVersion(url(port));
    },
  });
}

function settingsOf(password: string, options: RedisOptions): string[] {
  const settings = { requirepass: password, save: '', appendonly: 'no', daemonize: 'no', ...options.settings };
  return Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
}

/** Connects once, without connecting again by itself. */
async function readVersion(url: string): Promise<string> {
  const client = new Redis(url, {
    lazyConnect: true,
    retryStrategy: () => null,
    maxRetriesPerRequest: 0,
    connectTimeout: 5000,
  });
  client.on('error', () => {});
  try {
    await client.connect();
    const info = await client.info('server');
    return /^(?:valkey|redis)_version:(\S+)/m.exec(info)?.[1] ?? '';
  } finally {
    client.disconnect();
  }
}

function startRedisContainer(options: RedisOptions): Promise<ServerHandle> {
  const password = randomBytes(18).toString('hex');
  return startContainer({
    kind: 'redis',
    image: process.env.KEYTRAIL_REDIS_IMAGE || 'redis:8',
    containerPort: 6379,
    detached: options.detached === true,
    env: {},
    command: ['redis-server', ...settingsOf(password, options)],
    url: (port) => `redis://:${password}@127.0.0.1:${port}`,
    readVersion,
  });
}
