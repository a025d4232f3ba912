import { existsSync } from 'node:fs';
import { jetstream, jetstreamManager } from '@nats-io/jetstream';
import { connect } from '@nats-io/transport-node';
import { Redis } from 'ioredis';
import pg from 'pg';
import { afterEach, describe, expect, test, vi } from 'vitest';
import {
  ensureNats,
  ensurePostgres,
  ensureRedis,
  findFreePort,
  isRecordedAlive,
  type ServerHandle,
  ServerUnavailable,
  stopRecorded,
} from '../src/index.ts';

vi.setConfig({ testTimeout: 180_000, hookTimeout: 60_000 });

const ensure = { postgres: ensurePostgres, redis: ensureRedis, nats: ensureNats };
const kinds = ['postgres', 'redis', 'nats'] as const;

afterEach(() => vi.unstubAllEnvs());

async function query<Row extends object>(server: ServerHandle, text: string, timeoutMs = 5000): Promise<Row[]> {
  const client = new pg.Client({ connectionString: server.url, connectionTimeoutMillis: timeoutMs });
  client.on('error', () => {});
  await client.connect();
  try {
    return (await client.query<Row>(text)).rows;
  } finally {
    await client.end();
  }
}

async function withRedis<T>(server: ServerHandle, use: (client: Redis) => Promise<T>): Promise<T> {
  const client = new Redis(server.url, { retryStrategy: () => null });
  try {
    return await use(client);
  } finally {
    client.disconnect();
  }
}

describe.each(kinds)('a %s server', (kind) => {
  test('leaves no process and no folder behind when it is stopped', async () => {
    const server = await ensure[kind]({ own: true });
    const record = server.record;
    if (record === undefined) throw new Error('no record');
    expect(server.version).toMatch(/^\d+\.\d+/);
    expect(isRecordedAlive(record)).toBe(true);
    expect(record.folders.filter((folder) => existsSync(folder))).toHaveLength(1);

    await server.stop();
    await server.stop();
    await expect(server.restart?.()).rejects.toThrow('was stopped and its data removed');
    expect(isRecordedAlive(record)).toBe(false);
    expect(record.folders.filter((folder) => existsSync(folder))).toEqual([]);
  });

  test('runs beside others of its kind', async () => {
    await using first = await ensure[kind]({ own: true });
    await using second = await ensure[kind]({ own: true });
    expect(second.port).not.toBe(first.port);
    expect(second.pid).not.toBe(first.pid);
  });

  test('of the environment is used as it is and survives stop', async () => {
    await using theirs = await ensure[kind]({ own: true });
    vi.stubEnv(`KEYTRAIL_${kind.toUpperCase()}_FROM`, '');
    vi.stubEnv(`KEYTRAIL_${kind.toUpperCase()}_URL`, theirs.url);
    const server = await ensure[kind]();
    expect(server).toMatchObject({
      origin: 'environment',
      url: theirs.url,
      port: theirs.port,
      version: theirs.version,
    });
    await expect(server.kill('SIGKILL')).rejects.toThrow('not ours to kill');
    await server.stop();
    await expect(ensure[kind]()).resolves.toMatchObject({ origin: 'environment' });
    await using own = await ensure[kind]({ own: true });
    expect(own.url).not.toBe(theirs.url);
  });

  test('of the environment that does not answer is an error and not a reason to start another', async () => {
    vi.stubEnv(`KEYTRAIL_${kind.toUpperCase()}_FROM`, '');
    vi.stubEnv(`KEYTRAIL_${kind.toUpperCase()}_URL`, `${kind}://127.0.0.1:1`);
    await expect(ensure[kind]()).rejects.toThrow(`the server of KEYTRAIL_${kind.toUpperCase()}_URL cannot be used`);
  });

  test('that cannot be had tells what was tried and what to install', async () => {
    vi.stubEnv(`KEYTRAIL_${kind.toUpperCase()}_FROM`, 'docker');
    vi.stubEnv('PATH', '/nonexistent');
    const failure = await ensure[kind]({ own: true }).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(ServerUnavailable);
    expect(String(failure)).toMatch(/docker: no Docker daemon answers\nInstall .* or set KEYTRAIL_/);
  });

  test('that is detached is stopped through its record', async () => {
    const server = await ensure[kind]({ own: true, detached: true });
    const record = JSON.parse(JSON.stringify(server.record));
    await stopRecorded(record);
    await stopRecorded(record);
    expect(isRecordedAlive(record)).toBe(false);
    expect(existsSync(record.folders[0])).toBe(false);
  });
});

describe('PostgreSQL', () => {
  test.each(['path', 'toolchain'] as const)('from the %s makes databases and roles', async (from) => {
    const server = await ensurePostgres({ own: true, from }).catch((error: unknown) => {
      if (from === 'path' && error instanceof ServerUnavailable) return undefined;
      throw error;
    });
    if (server === undefined) return;
    await using _ = server;
    await query(server, 'CREATE ROLE identity_keys LOGIN');
    await query(server, 'CREATE DATABASE identity_keys OWNER identity_keys');
    const rows = await query(
      server,
      `SELECT pg_encoding_to_char(encoding) AS encoding, datcollate, current_setting('max_connections') AS connections FROM pg_database WHERE datname = 'identity_keys'`,
    );
    expect(rows).toEqual([{ encoding: 'UTF8', datcollate: 'C.UTF-8', connections: '300' }]);
  });

  test('keeps its port and what was committed over restart, halt and SIGKILL', async () => {
    await using server = await ensurePostgres({ own: true, fsync: true, settings: { work_mem: '8MB' } });
    const { url, pid } = server;
    await query(server, 'CREATE TABLE claims (id int)');
    await server.restart?.();
    await query(server, 'INSERT INTO claims VALUES (1)');
    await server.kill('SIGKILL');
    await expect(query(server, 'SELECT 1')).rejects.toThrow('ECONNREFUSED');
    await server.restart?.();
    await query(server, 'INSERT INTO claims VALUES (2)');
    await server.halt?.();
    await expect(query(server, 'SELECT 1')).rejects.toThrow('ECONNREFUSED');
    await server.restart?.();
    expect(await query(server, 'SELECT id FROM claims ORDER BY id')).toEqual([{ id: 1 }, { id: 2 }]);
    expect(
      await query(server, `SELECT current_setting('fsync') AS fsync, current_setting('work_mem') AS work_mem`),
    ).toEqual([{ fsync: 'on', work_mem: '8MB' }]);
    expect(server.url).toBe(url);
    expect(server.pid).not.toBe(pid);
  });

  test('frozen by SIGSTOP answers nobody, not even open connections, until SIGCONT', async () => {
    await using server = await ensurePostgres({ own: true });
    const client = new pg.Client({ connectionString: server.url });
    await client.connect();
    await server.kill('SIGSTOP');
    await expect(query(server, 'SELECT 1', 300)).rejects.toThrow('timeout');
    const answer = client.query<{ one: number }>('SELECT 1 AS one');
    const early = await Promise.race([
      answer.then(() => 'answered'),
      new Promise((resolve) => setTimeout(resolve, 200, 'silent')),
    ]);
    expect(early).toBe('silent');
    await server.kill('SIGCONT');
    expect((await answer).rows).toEqual([{ one: 1 }]);
    await client.end();
  });

  test('that is frozen can be stopped', async () => {
    const server = await ensurePostgres({ own: true });
    await server.kill('SIGSTOP');
    await server.stop();
    expect(existsSync(server.record?.folders[0] ?? '')).toBe(false);
  }, 60_000);
});

describe('Redis', () => {
  test('comes back empty on its port after SIGKILL', async () => {
    await using server = await ensureRedis({ own: true });
    await withRedis(server, (client) => client.set('lease', 'gateway-1'));
    await server.kill('SIGKILL');
    await server.restart?.();
    expect(await withRedis(server, (client) => client.get('lease'))).toBeNull();
    expect(await withRedis(server, (client) => client.config('GET', 'save'))).toEqual(['save', '']);
  });

  test('refuses who has no password', async () => {
    await using server = await ensureRedis({ own: true });
    const client = new Redis(server.port, '127.0.0.1', { retryStrategy: () => null });
    client.on('error', () => {});
    await expect(client.get('lease')).rejects.toThrow('NOAUTH');
    client.disconnect();
  });
});

describe('NATS', () => {
  test('keeps its streams over restart and SIGKILL', async () => {
    await using server = await ensureNats({ own: true, syncInterval: 'always' });
    const count = async (publish: boolean) => {
      const connection = await connect({ servers: server.url });
      const manager = await jetstreamManager(connection);
      await manager.streams.add({ name: 'events', subjects: ['events.>'] });
      if (publish) await jetstream(connection).publish('events.one', 'hello');
      const { state } = await manager.streams.info('events');
      await connection.close();
      return state.messages;
    };
    expect(await count(true)).toBe(1);
    await server.restart?.();
    expect(await count(true)).toBe(2);
    await server.kill('SIGKILL');
    await server.restart?.();
    expect(await count(false)).toBe(2);
  });

  test('runs with the sync interval that it was given, by option or by the environment, and by none other', async () => {
    const configured = async (syncInterval?: string) => {
      const monitorPort = await findFreePort();
      await using _ = await ensureNats({ own: true, monitorPort, ...(syncInterval && { syncInterval }) });
      const varz = (await (await fetch(`http://127.0.0.1:${monitorPort}/varz`)).json()) as {
        jetstream: { config: { sync_interval: number; sync_always?: boolean } };
      };
      return varz.jetstream.config;
    };
    expect((await configured('always')).sync_always).toBe(true);
    vi.stubEnv('KEYTRAIL_NATS_SYNC_INTERVAL', '7s');
    try {
      expect(await configured()).toMatchObject({ sync_interval: 7e9 });
      await expect(configured('soon')).rejects.toThrow('KEYTRAIL_NATS_SYNC_INTERVAL must be always or a duration');
    } finally {
      vi.unstubAllEnvs();
    }
  });
});
