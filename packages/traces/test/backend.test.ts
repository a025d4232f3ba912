import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import {
  BackendRefused,
  BackendUnreachable,
  MalformedTrace,
  readTrace,
  readTraceText,
  startTraceStore,
} from '../src/index.ts';
import { asJaeger, asJaegerV3, asOtlp, asTempo, asTempoV2 } from './answers.ts';
import { missedRead } from './fixture.ts';

const traceId = '0af7651916cd43dd8448eb211c80319c';
const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

interface Answer {
  readonly status?: number;
  readonly body: unknown;
  readonly headers?: Record<string, string>;
}

/** A server that answers on some paths, and on others as `otherwise`. */
async function backend(
  paths: Record<string, Answer>,
  otherwise: Answer = { status: 404, body: '404 page not found\n' },
) {
  const asked: { path: string; headers: NodeJS.Dict<string | string[]> }[] = [];
  const server = createServer((request, response) => {
    asked.push({ path: request.url ?? '', headers: request.headers });
    const { status = 200, body, headers = {} } = paths[request.url ?? ''] ?? otherwise;
    response.writeHead(status, headers).end(typeof body === 'string' ? body : JSON.stringify(body));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  undo.push(() => {
    server.close();
    server.closeAllConnections();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked };
}

// Events are not written by the answers of this test, ids of the parent stand as they are.
const sorted = (spans: readonly { spanId: string }[]) => spans.toSorted((a, b) => a.spanId.localeCompare(b.spanId));

describe('the dialect is found out', () => {
  const page = { body: '<!doctype html><title>Jaeger UI</title>' };
  test.each([
    ['Tempo, v2', { [`/api/v2/traces/${traceId}`]: { body: asTempoV2(missedRead) } }, undefined],
    ['Tempo before v2', { [`/api/traces/${traceId}`]: { body: asTempo(missedRead) } }, undefined],
    ['Jaeger, whose UI answers every path', { [`/api/traces/${traceId}`]: { body: asJaeger(missedRead) } }, page],
    ['Jaeger v3 alone', { [`/api/v3/traces/${traceId}`]: { body: asJaegerV3(missedRead) } }, page],
  ] satisfies [string, Record<string, Answer>, Answer | undefined][])('of %s', async (_, paths, otherwise) => {
    const { url } = await backend(paths, otherwise);
    expect(sorted(await readTrace({ url }, traceId))).toEqual(sorted(missedRead));
  });

  test('of the local store', async () => {
    const store = await startTraceStore();
    undo.push(() => store.stop());
    const body = JSON.stringify(asOtlp(missedRead));
    await fetch(`${store.url}/v1/traces`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    expect(sorted(await readTrace({ url: store.url }, traceId))).toEqual(sorted(missedRead));
    expect(await readTrace({ url: store.url }, 'f'.repeat(32))).toEqual([]);
  });
});

test('headers go along, below the path that was given, to that host alone', async () => {
  const elsewhere = await backend({});
  const { url, asked } = await backend({
    [`/tempo/api/v2/traces/${traceId}`]: { body: asTempoV2(missedRead) },
    [`/moved/api/v2/traces/${traceId}`]: { status: 302, body: '', headers: { location: elsewhere.url } },
  });
  const headers = { 'x-scope-orgid': 'one', authorization: 'Bearer secret' };
  await readTrace({ url: `${url}/tempo`, dialect: 'tempo', headers }, traceId);
  expect(asked).toMatchObject([{ headers: { 'x-scope-orgid': 'one', accept: 'application/json' } }]);
  const moved = await readTrace({ url: `${url}/moved`, dialect: 'tempo', headers }, traceId).catch(
    (error: Error) => error,
  );
  expect(elsewhere.asked).toEqual([]);
  expect(String(moved)).toContain('redirects');
});

describe('a trace that is not there is no trace', () => {
  test.each([
    ['Tempo', { status: 404, body: 'trace not found' }],
    ['Tempo with an empty body', { status: 404, body: '' }],
    ['Jaeger', { status: 404, body: { data: null, errors: [{ code: 404, msg: 'trace not found' }] } }],
    ['Jaeger v3', { status: 404, body: { error: { httpCode: 404, message: 'No traces found' } } }],
    ['a v2 without a trace', { body: { trace: null } }],
  ] satisfies [string, Answer][])('as %s says it', async (_, answer) => {
    const { url } = await backend({}, answer);
    expect(await readTrace({ url }, traceId)).toEqual([]);
  });
});

describe('what is no answer of a backend is told as it is', () => {
  test.each<[string, Answer, new (...args: never[]) => Error, RegExp]>([
    ['no such API', { status: 404, body: '404 page not found' }, BackendRefused, /no API of traces that is known/],
    ['credentials are wanted', { status: 401, body: '' }, BackendRefused, /credentials/],
    ['it fails', { status: 503, body: 'too many outstanding requests' }, BackendRefused, /503 \(too many outstanding/],
    ['a page', { body: '<html>' }, BackendRefused, /a page/],
    ['half of an answer', { body: '{"resourceSpans":[' }, MalformedTrace, /not JSON/],
    ['something else', { body: { hits: 3 } }, MalformedTrace, /its fields are hits/],
    [
      'a broken span',
      { body: { resourceSpans: [{ scopeSpans: [{ spans: [{ traceId: 'x' }] }] }] } },
      MalformedTrace,
      /resourceSpans\[0\]\.scopeSpans\[0\]\.spans\[0\]\.startTimeUnixNano/,
    ],
    [
      'Jaeger without processes',
      { body: { data: [{ spans: [{ processID: 'p1' }] }] } },
      MalformedTrace,
      /data\[0\]\.spans\[0\]\.processID names no process/,
    ],
  ])('%s', async (_, answer, kind, words) => {
    const { url } = await backend({}, answer);
    const failure = await readTrace({ url }, traceId).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(kind);
    expect((failure as Error).message).toMatch(words);
  });

  test('nobody there', async () => {
    const failure = await readTrace({ url: 'http://127.0.0.1:1' }, traceId).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(BackendUnreachable);
    expect((failure as Error).message).toContain('its port is one of other protocols');
  });

  test('an answer without end is not read on', async () => {
    const { url } = await backend({}, { body: ' '.repeat(5_000) });
    await expect(readTrace({ url, maxBytes: 1_000 }, traceId)).rejects.toThrow(/more than 1000 bytes/);
  });
});

test('text is read as one value, or as one per line', () => {
  const [first, ...rest] = missedRead;
  if (first === undefined) throw new Error('there are spans');
  const lines = [asOtlp([first]), asOtlp(rest)].map((each) => JSON.stringify(each)).join('\n');
  expect(readTraceText(`${lines}\n`)).toEqual(missedRead);
  expect(readTraceText(JSON.stringify(asOtlp(missedRead), null, 2))).toEqual(missedRead);
  expect(readTraceText(missedRead.map((span) => JSON.stringify(span)).join('\n'))).toEqual(missedRead);
  expect(() => readTraceText(`${lines}\n{`)).toThrow(/line 3/);
  expect(() => readTraceText(' ')).toThrow(/empty/);
  expect(() => readTraceText('[1]')).toThrow(/not an object/);
});
