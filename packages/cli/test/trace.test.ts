import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startTraceStore, type TraceSpan, type TraceStore } from '@keytrail/traces';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { asJaeger, asOtlp, asTempoV2 } from '../../traces/test/answers.ts';
import { missedRead } from '../../traces/test/fixture.ts';
import { wholeRecovery } from '../../traces/test/whole-recovery.ts';
import { run } from '../src/program.ts';

const traceId = '0af7651916cd43dd8448eb211c80319c';
const lastWriteId = '1'.repeat(32);
let folder = '';
let store: TraceStore;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'keytrail-cli-trace-'));
  store = await startTraceStore();
});
afterAll(async () => {
  await store?.stop();
  await rm(folder, { recursive: true, force: true });
});

async function keytrail(args: readonly string[], environment: Readonly<Record<string, string>> = {}) {
  const written = { out: '', err: '' };
  const code = await run(args, {
    environment,
    out(text) {
      written.out += text;
    },
    say(text) {
      written.err += text;
    },
  });
  return { code, ...written };
}

async function file(name: string, content: unknown): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

async function send(spans: readonly TraceSpan[]): Promise<void> {
  await fetch(`${store.url}/v1/traces`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(asOtlp(spans)),
  });
}

const lastWrite: TraceSpan = {
  ...(wholeRecovery[0] as TraceSpan),
  traceId: lastWriteId,
  spanId: '2'.repeat(16),
  service: 'session',
  name: 'StoreSession',
};

describe('keytrail trace', () => {
  it('says what the store dropped of a trace, beyond its bounds, and calls that not whole', async () => {
    const small = await startTraceStore({ bounds: { spansPerTrace: wholeRecovery.length - 3 } });
    const spans = JSON.stringify(asOtlp(wholeRecovery));
    await fetch(`${small.url}/v1/traces`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: spans,
    });
    const html = join(folder, 'dropped.html');
    const asText = await keytrail(['trace', traceId, '--backend', small.url]);
    const asJson = await keytrail(['--json', 'trace', traceId, '--backend', small.url]);
    const asPage = await keytrail(['trace', traceId, '--backend', small.url, '--html', html]);
    await small.stop();
    for (const { code, err } of [asText, asJson, asPage]) {
      expect(code).toBe(4);
      expect(err).toContain('dropped 3 spans of the trace, beyond its bounds');
      expect(err).not.toContain('whole');
    }
    const report = JSON.parse(asJson.out);
    expect(report).toMatchObject({ whole: false, dropped: 3 });
    // What is left of it lacks no hop for certain: by that alone it would be whole.
    expect(report.missing.filter(({ certain }: { certain: boolean }) => certain)).toEqual([]);
    expect(await readFile(html, 'utf8')).toContain('3 spans of this trace came to the store beyond its bounds');
  });

  it('does not call whole what Tempo says is a part of a trace, nor what the store says in a file that it dropped', async () => {
    const part = { ...asTempoV2(wholeRecovery), status: 'PARTIAL', message: 'Trace exceeds maximum size' };
    const asText = await keytrail(['trace', '--file', await file('part.json', part)]);
    const asJson = await keytrail(['--json', 'trace', '--file', await file('part.json', part)]);
    for (const { code, err } of [asText, asJson]) {
      expect(code).toBe(4);
      expect(err).toContain('gives only a part of the trace');
      expect(err).not.toContain('whole');
    }
    expect(JSON.parse(asJson.out)).toMatchObject({ whole: false, dropped: 0, partial: true });
    const stored = { id: traceId, spans: wholeRecovery, dropped: 2 };
    const dropped = await keytrail(['trace', '--file', await file('stored.json', stored)]);
    expect(dropped).toMatchObject({ code: 4, err: expect.stringContaining('dropped 2 spans of the trace') });
  });

  it('does not wait for the consumer of an event that is old, nor call its trace broken', async () => {
    const id = '8'.repeat(32);
    const [root] = wholeRecovery as [TraceSpan];
    const published = wholeRecovery.find((one) => one.kind === 'producer' && one.service === 'session') as TraceSpan;
    const sent = (secondsAgo: number, traceId: string) =>
      [root, { ...published, parentSpanId: root.spanId }].map((span) => ({
        ...span,
        traceId,
        startMs: span.startMs - published.startMs + Date.now() - secondsAgo * 1_000,
      }));
    await send(sent(40, id));
    const old = await keytrail(['trace', id, '--wait', '1h', '--backend', store.url]);
    expect(old).toMatchObject({ code: 0, err: expect.stringContaining('may rightly not be there') });
    expect(old.out).toContain('? perhaps missing: presence process keytrail.session.v1.notification_requested');
    const fresh = '9a'.repeat(16);
    await send(sent(0, fresh));
    expect(await keytrail(['trace', fresh, '--backend', store.url])).toMatchObject({ code: 4 });
  });

  it('shows a whole trace with its cause and its builds, and ends with 0', async () => {
    const ran = await keytrail(['trace', '--file', await file('whole.json', asOtlp(wholeRecovery))]);
    expect(ran).toMatchObject({ code: 0, err: expect.stringContaining('the trace is whole') });
    expect(ran.out).toContain('✗ MISS DEVICE_ADDED_AFTER_SESSION');
    expect(ran.out).toContain('build of session: 0.1.0+3f2a9c0d1e4b');
    expect(ran.out).toContain(`the last write: trace ${lastWriteId}, which is not there (any more)`);
  });

  it('points out the service and the operation that are missing, says why, and ends with 4', async () => {
    const spans = wholeRecovery.filter(({ service }) => service !== 'conversation');
    const ran = await keytrail(['trace', '--file', await file('broken.json', asJaeger(spans))]);
    expect(ran).toMatchObject({ code: 4, err: expect.stringContaining('1 hop is missing') });
    expect(ran.out).toContain('✗ MISSING below: conversation ConversationService/CheckEntitlement');
    expect(ran.out).toContain('✗ missing: conversation ConversationService/CheckEntitlement  [CALL_NOT_SERVED]');
    expect(ran.out).toContain('likely: nothing of conversation is in the trace');
  });

  it('points out more than one build of one service', async () => {
    const mixed = wholeRecovery.map((span) =>
      span.name === 'FulfillKeyRequest' && span.service === 'session' ? { ...span, build: '0.2.0+aaaaaaaaaaaa' } : span,
    );
    const path = await file('mixed.json', asOtlp(mixed));
    const ran = await keytrail(['trace', '--file', path]);
    expect(ran.out).toContain('! 2 builds of session in one trace: 0.1.0+3f2a9c0d1e4b, 0.2.0+aaaaaaaaaaaa');
    expect(ran.out).toContain('build 0.2.0+aaaaaaaaaaaa');
    expect(JSON.parse((await keytrail(['--json', 'trace', '--file', path])).out)).toMatchObject({
      mixedBuilds: ['session'],
    });
  });

  it('prints one stable document as JSON', async () => {
    const { code, out } = await keytrail(['--json', 'trace', '--file', await file('json.json', asOtlp(missedRead))]);
    expect(code).toBe(4);
    const golden = await readFile(join(import.meta.dirname, 'golden/trace.json'), 'utf8');
    expect(JSON.parse(out)).toEqual(JSON.parse(golden));
  });

  it('tells of users and devices pseudonyms only, and nothing that is not registered', async () => {
    const attributes = { 'keytrail.user': 'alice@example', 'keytrail.device': 'd3e13ef530911331', 'user.email': 'a@b' };
    const [first] = wholeRecovery as [TraceSpan];
    const path = await file('ids.json', asOtlp([{ ...first, attributes }]));
    for (const args of [
      ['--json', 'trace', '--file', path],
      ['trace', '--file', path, '--html', join(folder, 'ids.html')],
    ]) {
      const { out } = await keytrail(args);
      const told = out || (await readFile(join(folder, 'ids.html'), 'utf8'));
      expect(told).toContain('d3e13ef530911331');
      expect(told).not.toMatch(/alice|a@b/);
    }
  });

  it('reads stdin', async () => {
    const main = join(import.meta.dirname, '../src/main.ts');
    const child = spawn(process.execPath, [main, 'trace', '--file', '-'], { stdio: ['pipe', 'pipe', 'ignore'] });
    child.stdin.end(JSON.stringify(asOtlp(wholeRecovery)));
    const [out] = await Promise.all([child.stdout.toArray(), once(child, 'exit')]);
    expect(Buffer.concat(out).toString()).toContain(`trace ${traceId}`);
    expect(child.exitCode).toBe(0);
  });

  it('finds the newest miss of the local store, lists misses, and follows to the last write', async () => {
    const environment = { KEYTRAIL_TRACE_BACKEND: store.url };
    expect(await keytrail(['trace', '--latest-miss'], environment)).toMatchObject({ code: 1 });
    await send([lastWrite]);
    await send(wholeRecovery);
    const latest = await keytrail(['trace', '--latest-miss', '--follow'], environment);
    expect(latest.code).toBe(0);
    expect(latest.out).toContain(`the last write: trace ${lastWriteId} · session StoreSession`);
    expect(latest.out).toContain('session · StoreSession');
    const listed = await keytrail(['trace', '--misses'], environment);
    expect(listed.out).toContain(`${traceId}  `);
    expect(listed.out).toContain('DEVICE_ADDED_AFTER_SESSION');
    const { out } = await keytrail(['--json', 'trace', `00-${traceId}-0000000000000003-01`, '--follow'], environment);
    expect(JSON.parse(out)).toMatchObject({
      linked: [{ relation: 'last_write', found: true, trace: { traceId: lastWriteId } }],
    });
  });

  it('waits for what is still on its way', async () => {
    const id = '7'.repeat(32);
    const spans = wholeRecovery.map((span) => ({ ...span, traceId: id, links: [] }));
    await send(spans.filter(({ service }) => service !== 'presence'));
    const waiting = keytrail(['trace', id, '--wait', '60s', '--backend', store.url]);
    await send(spans);
    expect(await waiting).toMatchObject({ code: 0, err: expect.stringContaining('whole') });
  });

  it('says what to try when there is no such trace, and ends with 1', async () => {
    const ran = await keytrail(['trace', '9'.repeat(32), '--backend', store.url]);
    expect(ran).toMatchObject({ code: 1, out: '', err: expect.stringMatching(/not yet\?.*sampled\?.*too old\?/s) });
  });

  it('says the same to who wants it explained, and at once that it waits', async () => {
    const explain = ['explain', '--trace', '9'.repeat(32), '--backend', store.url, '--wait'];
    const waited = await keytrail([...explain, '300ms']);
    expect(waited).toMatchObject({ code: 1, out: '' });
    expect(waited.err).toMatch(/^no span of the trace is there yet: looking for up to 0\.3 s \(--wait\)\n/);
    expect(waited.err).toMatch(/no span of trace 9{32} is there\n +not yet\?.*\n +sampled\?.*\n +too old\?/);
    expect((await keytrail([...explain, '0s'])).err).toMatch(/^keytrail: no span of trace/);
  });

  it.each<[string, string[], RegExp, Record<string, string>?]>([
    ['no backend', ['trace', traceId], /KEYTRAIL_TRACE_BACKEND/],
    ['no id', ['trace', '--backend', 'http://127.0.0.1:1'], /trace id/],
    ['a bad id', ['trace', 'abc'], /32 hex digits/],
    ['an id of zeros', ['trace', '0'.repeat(32)], /32 hex digits/],
    ['credentials in the URL', ['trace', traceId, '--backend', 'http://u:p@127.0.0.1:1'], /holds credentials/],
    ['no URL', ['trace', traceId, '--backend', 'tempo'], /not a URL/],
    ['a dialect that is none', ['trace', traceId, '--dialect', 'zipkin'], /--dialect/],
    [
      'headers that are none',
      ['trace', traceId, '--backend', 'http://127.0.0.1:1'],
      /line 1 of the headers/,
      { KEYTRAIL_TRACE_HEADERS: 'secret' },
    ],
    ['a file that is not there', ['trace', '--file', join(import.meta.dirname, 'not-there')], /ENOENT/],
    ['both', ['trace', '--file', 'x', '--backend', 'http://127.0.0.1:1'], /not both/],
  ])('ends with 2 for %s', async (_, args, words, environment) => {
    const ran = await keytrail(args, environment);
    expect(ran).toMatchObject({ code: 2, out: '', err: expect.stringMatching(words) });
    expect(ran.err).not.toMatch(/secret|u:p/);
  });

  it('ends with 3 when nothing answers, with 1 for what is no trace', async () => {
    expect(await keytrail(['trace', traceId, '--backend', 'http://127.0.0.1:1'])).toMatchObject({ code: 3 });
    const path = await file('no.json', { resourceSpans: [{ scopeSpans: 3 }] });
    const ran = await keytrail(['trace', '--file', path]);
    expect(ran).toMatchObject({ code: 1, err: expect.stringContaining('resourceSpans[0].scopeSpans is not a list') });
  });
});
