import { createClient } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-web';
import { SessionService } from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import {
  context,
  contextFromTraceparent,
  currentTraceId,
  ROOT_CONTEXT,
  type Telemetry,
  withSpan,
} from '@keytrail/telemetry';
import { findMissingHops, type TraceTree } from '@keytrail/traces';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { recordDevices } from './devices-telemetry.ts';
import { type OtlpSink, startOtlpSink } from './otlp-sink.ts';
import { someone, startWorld, type World } from './world.ts';

let sink: OtlpSink;
let devices: Telemetry;
let world: World;

beforeAll(async () => {
  sink = await startOtlpSink();
  devices = recordDevices(sink.url, 0);
  world = await startWorld({
    name: 'test-misses-kept',
    traceRatio: 0,
    env: {
      KEYTRAIL_OTLP_URL: sink.url,
      KEYTRAIL_METRICS_EXPORT_MS: '250',
      // Kept for a miss, not for a loaded machine.
      KEYTRAIL_SLOW_MS: '600000',
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  await devices?.shutdown();
  await sink?.[Symbol.asyncDispose]();
});

const processes = ['conversation', 'devices', 'identity-keys', 'presence', 'session'];

async function inTrace<T>(work: () => Promise<T>): Promise<{ traceId: string; value: T }> {
  let traceId = '';
  const value = await withSpan('test', { parent: ROOT_CONTEXT }, () => {
    traceId = currentTraceId();
    return work();
  });
  return { traceId, value };
}

async function conversationOfTwo() {
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = await world.online(a, 'phone');
  const bob = await world.online(b, 'phone');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
  await alice.send(conversationId, 'hello');
  return { b, alice, bob, conversationId, sessionId };
}

function missingForCertain(tree: TraceTree): string[] {
  return findMissingHops(tree)
    .filter(({ certain }) => certain)
    .map(({ code, operation }) => `${code} ${operation}`);
}

function serves(tree: TraceTree, method: string): boolean {
  return tree.spans.some(({ kind, name }) => kind === 'server' && name.endsWith(`/${method}`));
}

test('with nothing sampled a miss and its cure arrive whole, from every process, and a hit does not arrive', async () => {
  const { b, bob, conversationId, sessionId } = await conversationOfTwo();
  const hit = await inTrace(() => bob.openSession(conversationId, sessionId));
  expect(hit.value.origin).not.toBe('recovered');

  const tablet = await world.further(bob, b, 'tablet');
  await tablet.attach();
  const { traceId } = await inTrace(() => tablet.openSession(conversationId, sessionId));
  await devices.flush();
  const tree = await sink.trace(
    traceId,
    (current) =>
      current.orphans.length === 0 &&
      processes.every((service) => current.services.includes(service)) &&
      ['GetInitialSession', 'RequestKey', 'FulfillKeyRequest', 'AckKey'].every((method) => serves(current, method)),
  );
  expect(tree.roots.map(({ span }) => span.name)).toEqual(['test']);
  expect([...tree.services].sort()).toEqual(processes);
  const reads = tree.spans.filter(({ kind, name }) => kind === 'server' && name.endsWith('/GetInitialSession'));
  // The miss, and the hit that ends it.
  expect(reads.map(({ attributes }) => attributes['rpc.status_code']).sort()).toEqual(['NOT_FOUND', 'OK']);
  expect(missingForCertain(tree)).toEqual([]);
  expect(sink.spans().filter((span) => span.traceId === hit.traceId)).toEqual([]);
});

test('with nothing sampled an offer that is declined does not cut the trace: the next holder is asked in it', async () => {
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = await world.online(a, 'phone');
  const bob = await world.online(b, 'phone', { deviceTrust: ({ deviceId }) => deviceId !== 'tablet' });
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
  const tablet = await world.further(bob, b, 'tablet');
  await tablet.attach();
  const { traceId, value } = await inTrace(() => tablet.openSession(conversationId, sessionId));
  expect(value.origin).toBe('recovered');
  await devices.flush();
  const tree = await sink.trace(
    traceId,
    (current) =>
      current.orphans.length === 0 &&
      ['DeclineOffer', 'FulfillKeyRequest', 'AckKey'].every((method) => serves(current, method)),
  );
  expect(tree.roots.map(({ span }) => span.name)).toEqual(['test']);
  expect(missingForCertain(tree)).toEqual([]);
});

test('with nothing sampled keys that are asked for together come in the trace of their request', async () => {
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = await world.online(a, 'phone');
  const bob = await world.online(b, 'phone');
  for (let n = 0; n < 5; n += 1) {
    const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [b] });
    await bob.openSession(conversationId, sessionId);
  }
  const from = Date.now();
  const tablet = await world.further(bob, b, 'tablet', { recoverHistory: true });
  const recovered = new Promise<void>((resolve) => tablet.on('keysWanted', ({ left }) => left === 0 && resolve()));
  await tablet.attach();
  await recovered;
  await devices.flush();
  const served = (method: RegExp) => sink.spans().filter(({ kind, name }) => kind === 'server' && method.test(name));
  const batches = () => served(/\/FulfillKeyRequests$/).filter(({ startMs }) => startMs >= from);
  await expect.poll(() => batches().length, { timeout: 10_000 }).toBeGreaterThan(0);
  const asked = new Set(served(/\/RequestKeys?$/).map(({ traceId }) => traceId));
  const answered = served(/\/FulfillKeyRequests?$/).map(({ traceId, links }) => [
    traceId,
    ...links.map((to) => to.traceId),
  ]);
  expect(answered.filter((traces) => !traces.some((id) => asked.has(id)))).toEqual([]);
  const [several] = batches();
  const tree = await sink.trace(
    several?.traceId ?? '',
    (current) =>
      current.orphans.length === 1 &&
      ['RequestKeys', 'FulfillKeyRequests', 'AckKey'].every((method) => serves(current, method)),
  );
  // What the tablet did before it asked was no miss, so that it kept nothing of it.
  expect(tree.orphans.map(({ name }) => name)).toEqual(['keytrail.session.v1.SessionService/RequestKeys']);
  expect(missingForCertain(tree)).toEqual([]);
});

test('the miss is linked to the writes that it may come from, and those have arrived', async () => {
  const { b, bob, conversationId, sessionId } = await conversationOfTwo();
  const tablet = await world.further(bob, b, 'tablet');
  const missed = tablet.openSession(conversationId, sessionId, { recover: false });
  await expect(missed).rejects.toMatchObject({ cause: 'DEVICE_ADDED_AFTER_SESSION' });
  const { traceId, causedByTraceId } = (await missed.catch((error: unknown) => error)) as Record<string, string>;
  await devices.flush();
  const told = (tree: TraceTree) =>
    tree.spans.find(({ service, attributes }) => service === 'session' && attributes['keytrail.miss'] === true);
  const tree = await sink.trace(traceId ?? '', (current) => told(current) !== undefined);
  const links = told(tree)?.links ?? [];
  expect(links.map(({ attributes }) => attributes['keytrail.link'])).toContain('session_written');
  const written = links.find(({ attributes }) => attributes['keytrail.link'] === 'session_written');
  expect(written?.traceId).toBe(causedByTraceId);
  const write = await sink.trace(written?.traceId ?? '', ({ spans }) =>
    spans.some(({ spanId }) => spanId === written?.spanId),
  );
  expect(write.spans.find(({ spanId }) => spanId === written?.spanId)).toMatchObject({
    service: 'session',
    name: 'keytrail.session.v1.SessionService/StoreSession',
  });
  // The device that it is about: its registration was a write too.
  const registered = ({ name, attributes }: TraceTree['spans'][number]) =>
    name.endsWith('/RegisterDevice') && attributes['keytrail.kept'] === 'device registered';
  expect(sink.spans().some(registered)).toBe(true);
});

test('misses are counted by cause and state of recovery, and by nothing that grows', async () => {
  const { conversationId, sessionId, bob } = await conversationOfTwo();
  const eve = someone('eve');
  const stranger = world.device(eve, 'phone');
  await stranger.register();
  await expect(stranger.openSession(conversationId, sessionId)).rejects.toThrow('NOT_FOUND_OR_NOT_PERMITTED');
  const unknown = bob.openSession(conversationId, 'no-such-session', { recover: false });
  await expect(unknown).rejects.toMatchObject({ cause: 'SESSION_UNKNOWN' });
  const counted = () =>
    sink
      .metrics()
      .filter(({ name }) => name === 'keytrail.misses')
      .flatMap(({ points }) => points.map(({ attributes }) => attributes));
  const wanted = ['NOT_FOUND_OR_NOT_PERMITTED', 'SESSION_UNKNOWN'];
  await expect
    .poll(() => counted().map((each) => each['keytrail.miss.cause']), { timeout: 20_000 })
    .toEqual(expect.arrayContaining(wanted));
  for (const attributes of counted())
    expect(Object.keys(attributes).sort()).toEqual(['keytrail.miss.cause', 'keytrail.recovery']);
});

test.each(['grpc', 'web'] as const)(
  'a device on %s keeps its trace id, and cannot have itself sampled',
  async (wire) => {
    const { b, conversationId, sessionId } = await conversationOfTwo();
    const token = await world.constellation.issuer.token({ userId: b, deviceId: 'phone' });
    const headers = { authorization: `Bearer ${token}` };
    const traceId = wire === 'grpc' ? 'a0'.repeat(16) : 'b0'.repeat(16);
    const transport =
      wire === 'grpc'
        ? createGrpcTransport({ target: world.constellation.grpcTarget('session') })
        : createConnectTransport({ baseUrl: world.constellation.webUrl('session') });
    const told: (string | null)[] = [];
    const traceparent = `00-${traceId}-${'c'.repeat(16)}-01`;
    // Our gRPC transport sends the trace that is active, whatever the headers say.
    await context.with(contextFromTraceparent(traceparent), () =>
      createClient(SessionService, transport).getInitialSession(
        { conversationId, sessionId },
        {
          headers: { ...headers, traceparent },
          onHeader: (header) => void told.push(header.get('keytrail-trace-id')),
          onTrailer: (trailer) => void told.push(trailer.get('keytrail-trace-id')),
        },
      ),
    );
    expect(told).toContain(traceId);
    // Whatever is exported in the order of its end: a miss that came later has arrived.
    const { bob } = await conversationOfTwo();
    const later = await inTrace(() => bob.openSession(conversationId, sessionId).catch((error: unknown) => error));
    await devices.flush();
    await sink.trace(later.traceId, ({ services }) => services.includes('session'));
    expect(sink.spans().filter((span) => span.traceId === traceId && span.service !== 'devices')).toEqual([]);
  },
);
