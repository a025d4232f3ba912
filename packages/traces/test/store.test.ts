import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { gzipSync } from 'node:zlib';
import { afterEach, expect, test } from 'vitest';
import type { TraceStore, TraceStoreOptions } from '../src/index.ts';
import { fetchTrace, startTraceStore, TraceNotFound } from '../src/index.ts';
import { TraceJournal } from '../src/journal.ts';
import { missedRead } from './fixture.ts';

const traceId = '0af7651916cd43dd8448eb211c80319c';
const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function store(options?: TraceStoreOptions): Promise<TraceStore> {
  const started = await startTraceStore(options);
  undo.push(() => started.stop());
  return started;
}

async function folder(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'keytrail-traces-'));
  undo.push(() => rm(path, { recursive: true }));
  return path;
}

function otlp(spanId: string, more: Record<string, unknown> = {}) {
  const span = {
    traceId,
    spanId: spanId.padStart(16, '0'),
    name: 'GetInitialSession',
    kind: 2,
    startTimeUnixNano: '1795384000000250000',
    endTimeUnixNano: '1795384000012750000',
    attributes: [
      { key: 'keytrail.epoch', value: { intValue: '3' } },
      { key: 'keytrail.miss', value: { boolValue: true } },
      { key: 'names', value: { arrayValue: { values: [{ stringValue: 'a' }, { doubleValue: 0.5 }] } } },
    ],
    status: { code: 2, message: 'no' },
    ...more,
  };
  const resource = { attributes: [{ key: 'service.name', value: { stringValue: 'session' } }] };
  return { resourceSpans: [{ resource, scopeSpans: [{ scope: { name: 'keytrail' }, spans: [span] }] }] };
}

function post(url: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${url}/v1/traces`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: body instanceof Uint8Array ? new Uint8Array(body) : JSON.stringify(body),
  });
}

test('what was sent as OTLP is read back as spans', async () => {
  const { url } = await store();
  expect((await post(url, otlp('1'))).status).toBe(200);
  const zipped = gzipSync(JSON.stringify(otlp('2', { parentSpanId: '1'.padStart(16, '0') })));
  expect((await post(url, zipped, { 'content-encoding': 'gzip' })).status).toBe(200);
  const tree = await fetchTrace(url, traceId, { until: ({ spans }) => spans.length === 2 });
  expect(tree.orphans).toEqual([]);
  expect(tree.spans[0]).toMatchObject({
    service: 'session',
    kind: 'server',
    startMs: 1_795_384_000_000.25,
    durationMs: 12.5,
    status: 'error',
    attributes: { 'keytrail.epoch': 3, 'keytrail.miss': true, names: ['a', 0.5] },
  });
});

test('metrics and logs are taken and forgotten', async () => {
  const { url } = await store();
  for (const path of ['metrics', 'logs'])
    expect((await fetch(`${url}/v1/${path}`, { method: 'POST', body: '{}' })).status).toBe(200);
});

test('what is not OTLP is refused, and the store lives', async () => {
  const { url } = await store();
  for (const body of [[], { resourceSpans: {} }, otlp('1', { traceId: 'x' }), otlp('1', { startTimeUnixNano: 'soon' })])
    expect((await post(url, body)).status).toBe(400);
  expect((await post(url, Buffer.from('{'))).status).toBe(400);
  expect((await post(url, Buffer.from('x'), { 'content-encoding': 'gzip' })).status).toBe(400);
  expect((await post(url, {}, { 'content-type': 'application/x-protobuf' })).status).toBe(415);
  expect((await post(url, otlp('1'))).status).toBe(200);
});

test('only the newest traces stay, the list shows them newest first', async () => {
  const { url } = await store({ bounds: { traces: 2, spansPerTrace: 1 } });
  const id = (n: number) => `${n}`.repeat(32);
  for (const n of [1, 2, 3]) await post(url, otlp('1', { traceId: id(n) }));
  await post(url, otlp('2', { traceId: id(3) }));
  const { traces } = (await (await fetch(`${url}/traces?limit=5`)).json()) as { traces: { id: string }[] };
  expect(traces.map((trace) => trace.id)).toEqual([id(3), id(2)]);
  expect(traces[0]).toMatchObject({ name: 'GetInitialSession', services: ['session'], spans: 1, errors: 1 });
  expect((await fetch(`${url}/traces/${id(1)}`)).status).toBe(404);
});

test('a bound of bytes holds too', async () => {
  const { url } = await store({ bounds: { bytes: 1_500 } });
  for (const n of [1, 2, 3, 4, 5]) await post(url, otlp('1', { traceId: `${n}`.repeat(32), name: 'x'.repeat(400) }));
  const { traces } = (await (await fetch(`${url}/traces`)).json()) as { traces: unknown[] };
  expect(traces.length).toBeLessThan(3);
});

test('a trace that never comes is not found', async () => {
  const { url } = await store();
  await expect(fetchTrace(url, traceId, { timeoutMs: 1 })).rejects.toThrow(TraceNotFound);
});

test('a trace that stays incomplete is given as it is when the time is over', async () => {
  const { url } = await store();
  await post(url, otlp('2', { parentSpanId: '1'.padStart(16, '0') }));
  const tree = await fetchTrace(url, traceId, { timeoutMs: 1 });
  expect(tree.orphans).toHaveLength(1);
});

test('spans are appended to a file, which turns over at its bound', async () => {
  const path = await folder();
  const journal = new TraceJournal(path, 100);
  await journal.append(missedRead.slice(0, 2));
  await journal.append(missedRead.slice(2, 3));
  const former = (await readFile(join(path, 'spans.1.jsonl'), 'utf8')).trim().split('\n');
  expect(former.map((line) => JSON.parse(line) as unknown)).toEqual(missedRead.slice(0, 2));
  expect(JSON.parse(await readFile(join(path, 'spans.jsonl'), 'utf8'))).toEqual(missedRead[2]);
});

test('the process says where it listens, stores, and stops when told', async () => {
  const path = await folder();
  const main = join(import.meta.dirname, '../src/bin/trace-store.ts');
  const child = spawn(process.execPath, [main, '--folder', path], { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  undo.push(async () => child.kill('SIGKILL'));
  const [line] = (await once(createInterface(child.stdout), 'line')) as [string];
  const { event, url } = JSON.parse(line) as { event: string; url: string };
  expect(event).toBe('listening');
  expect((await post(url, otlp('1'))).status).toBe(200);
  child.kill('SIGTERM');
  expect(await exited).toEqual([0, null]);
  expect(await readFile(join(path, 'spans.jsonl'), 'utf8')).toContain(traceId);
});

test('the process explains itself, and refuses what it does not know', async () => {
  const main = join(import.meta.dirname, '../src/bin/trace-store.ts');
  const run = async (...args: string[]) => {
    const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    const [out, problems] = await Promise.all([child.stdout.toArray(), child.stderr.toArray(), once(child, 'exit')]);
    return { code: child.exitCode, out: Buffer.concat(out).toString(), problems: Buffer.concat(problems).toString() };
  };
  expect(await run('--help')).toMatchObject({ code: 0, out: expect.stringContaining('--folder') });
  expect(await run('--port', '99999')).toMatchObject({ code: 2, problems: expect.stringContaining('--port') });
  expect(await run('--nonsense')).toMatchObject({ code: 2 });
});
