import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KeyMissError } from '@keytrail/client';
import { readTrace } from '@keytrail/traces';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { run } from '../../packages/cli/src/program.ts';
import { asTempoV2 } from '../../packages/traces/test/answers.ts';
import { someone, startWorld, type World } from './world.ts';

let world: World;
let traceId = '';
let folder = '';

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'keytrail-trace-command-'));
  // Nothing is sampled: what is there is there because it is kept.
  world = await startWorld({ name: 'test-trace-command', traceRatio: 0 });
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = await world.online(a, 'phone');
  const bob = await world.online(b, 'phone');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
  const tablet = await world.further(bob, b, 'tablet');
  const miss = await tablet.openSession(conversationId, sessionId, { recover: false }).catch((error: unknown) => error);
  expect(miss).toBeInstanceOf(KeyMissError);
  traceId = (miss as KeyMissError).traceId ?? '';
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

async function keytrail(...args: string[]) {
  const written = { out: '', err: '' };
  const code = await run(args, {
    environment: { KEYTRAIL_TRACE_BACKEND: world.constellation.traces.url },
    out(text) {
      written.out += text;
    },
    say(text) {
      written.err += text;
    },
  });
  return { code, ...written };
}

test('the trace id of a real 404 leads to every service, the cause, the builds and the last write, though nothing is sampled', async () => {
  const { code, out } = await keytrail('trace', traceId, '--wait', '30s', '--json');
  const report = JSON.parse(out) as {
    misses: unknown[];
    hops: { service: string; operation: string }[];
    services: { service: string; builds: string[] }[];
    linked: unknown[];
    missing: { certain: boolean }[];
  };
  expect(code).toBe(0);
  expect(report.misses).toMatchObject([{ service: 'session', cause: 'DEVICE_ADDED_AFTER_SESSION' }]);
  expect(report.services.map(({ service }) => service)).toEqual(
    expect.arrayContaining(['conversation', 'identity-keys', 'presence', 'session']),
  );
  for (const { service, builds } of report.services) expect([service, builds.length]).toEqual([service, 1]);
  expect(report.hops.map(({ operation }) => operation)).toEqual(
    expect.arrayContaining([
      'SessionService/GetInitialSession',
      'ConversationService/CheckEntitlement',
      'IdentityKeysService/GetDevices',
      'PresenceService/ListOnline',
    ]),
  );
  expect(report.missing.filter(({ certain }) => certain)).toEqual([]);
  expect(report.linked).toMatchObject([{ relation: 'last_write', found: true }]);
});

test('the newest miss is found without its id, and goes into a file for the incident', async () => {
  const file = join(folder, 'miss.html');
  const { code } = await keytrail('trace', '--latest-miss', '--wait', '30s', '--follow', '--html', file);
  expect(code).toBe(0);
  const html = await readFile(file, 'utf8');
  expect(html).toContain(traceId);
  expect(html).toContain('MISS DEVICE_ADDED_AFTER_SESSION');
  expect(html).toContain('StoreSession');
});

test('a service whose spans were lost on their way is named', async () => {
  const spans = await readTrace({ url: world.constellation.traces.url }, traceId);
  const file = join(folder, 'lossy.json');
  await writeFile(file, JSON.stringify(asTempoV2(spans.filter(({ service }) => service !== 'identity-keys'))));
  const { code, out } = await keytrail('trace', '--file', file);
  expect(code).toBe(4);
  expect(out).toContain('✗ missing: identity-keys IdentityKeysService/GetDevices');
});
