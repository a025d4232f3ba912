import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { afterAll, describe, expect, test, vi } from 'vitest';
import {
  isRecordedAlive,
  type StartProcessOptions,
  type StopRecord,
  startProcess,
  stopRecorded,
} from '../src/index.ts';

vi.setConfig({ testTimeout: 120_000 });

const folder = mkdtempSync(`${tmpdir()}/keytrail-test-`);
afterAll(() => rmSync(folder, { recursive: true }));

let count = 0;
const startService = (colour: string, options: Partial<StartProcessOptions> = {}) =>
  startProcess({
    name: 'service',
    args: ['deploy/local/test/programs/service.ts'],
    env: { COLOUR: colour },
    logFile: `${folder}/${count++}/service.log`,
    ...options,
  });

describe('a service', () => {
  test('is ready when it says where it listens, and inherits next to nothing', async () => {
    await using service = await startService('red');
    const line = await service.waitForLine(({ event }) => event === 'listening');
    expect(line.inherited).toBeLessThan(10);
    expect(await (await fetch(`http://127.0.0.1:${line.port}`)).text()).toBe('red');
    expect(service.lines()).toEqual([line]);
    await service.stop();
    expect(await service.exited).toEqual({ code: 0, signal: null });
    expect(readFileSync(service.logFile, 'utf8')).toMatch(/^not a line of JSON\n.*listening.*\n.*stopped.*\n$/);
  });

  test('may be ready in another way', async () => {
    let asked = 0;
    await using service = await startService('red', { ready: async () => ++asked === 3 });
    expect(asked).toBe(3);
    expect(isRecordedAlive(service.record)).toBe(true);
  });

  test('that ends before it is ready fails with the end of its log', async () => {
    await expect(startService('broken')).rejects.toThrow(
      /service ended with code 7\. .*service\.log ends:\nthe paint has dried up/,
    );
  });

  test('that never gets ready fails and is not left running', async () => {
    const line = startService('red', { readyLine: ({ event }) => event === 'never', readyTimeoutMs: 300 });
    await expect(line).rejects.toThrow('is still not there after 300 ms');
  });

  test('whose program is missing fails', async () => {
    await expect(startService('red', { command: '/nonexistent' })).rejects.toThrow(
      /service cannot be started: .*ENOENT/,
    );
  });

  test('restarts with another environment, after a stop or a kill', async () => {
    await using service = await startService('red');
    const ask = async () => {
      const { port } = await service.waitForLine(({ event }) => event === 'listening');
      return (await fetch(`http://127.0.0.1:${port}`)).text();
    };
    await service.restart({ env: { COLOUR: 'blue' } });
    expect(await ask()).toBe('blue');
    await service.kill('SIGKILL');
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
    await service.restart();
    expect(await ask()).toBe('blue');
  });

  test('that does not stop is killed after the grace', async () => {
    const service = await startService('stubborn');
    await service.stop(100);
    expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
  });

  test('that is detached is stopped through its record', async () => {
    const service = await startService('red', { detached: true });
    await stopRecorded(JSON.parse(JSON.stringify(service.record)));
    expect(await service.exited).toEqual({ code: 0, signal: null });
  });
});

describe('when the parent ends', () => {
  const survivors = (records: readonly StopRecord[]) =>
    records.flatMap((record) => [
      ...(isRecordedAlive(record) ? [record.name] : []),
      ...record.folders.filter((path) => existsSync(path)),
    ]);

  async function startParent(ending: 'wait' | 'exit' | 'throw') {
    const records = `${folder}/${count++}`;
    const parent = await startProcess({
      name: 'parent',
      command: '/bin/sh',
      // The records come as a JSON list, which is not a line of its own kind: wrapped into one here.
      args: ['-c', `exec "$0" deploy/local/test/programs/parent.ts ${ending} ${records}.service.log`, process.execPath],
      logFile: `${records}.log`,
      ready: async () => readFileSync(`${records}.log`, 'utf8').includes(']\n'),
    });
    const line = readFileSync(parent.logFile, 'utf8')
      .split('\n')
      .find((text) => text.startsWith('['));
    return { parent, records: JSON.parse(line ?? '[]') as StopRecord[] };
  }

  test.each(['SIGKILL', 'SIGTERM', 'SIGINT', 'SIGHUP'] as const)(
    'by %s, its servers, services and folders go too',
    async (signal) => {
      const { parent, records } = await startParent('wait');
      expect(records.map(({ name }) => name)).toEqual(['postgres', 'redis', 'nats', 'echo']);
      expect(survivors(records)).toHaveLength(7);
      const pid = parent.pid;
      process.kill(pid, signal);
      expect((await parent.exited).signal).toBe(signal);
      await vi.waitUntil(() => survivors(records).length === 0, { timeout: 10_000 });
    },
  );

  test.each(['exit', 'throw'] as const)('by %s without having stopped anything, they go too', async (ending) => {
    const { parent, records } = await startParent(ending);
    expect(records).toHaveLength(4);
    await parent.exited;
    await vi.waitUntil(() => survivors(records).length === 0, { timeout: 10_000 });
  });
});
