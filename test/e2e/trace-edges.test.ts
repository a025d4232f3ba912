import { createNodeTransports } from '@keytrail/client/node';
import { createWebTransports } from '@keytrail/client/web';
import {
  attributeReference,
  currentTraceId,
  eventReference,
  ROOT_CONTEXT,
  resourceReference,
  type Telemetry,
  withSpan,
} from '@keytrail/telemetry';
import type { TraceSpan, TraceTree } from '@keytrail/traces';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { recordDevices } from './devices-telemetry.ts';
import { type OtlpSink, startOtlpSink } from './otlp-sink.ts';
import { someone, startWorld, type World } from './world.ts';

let sink: OtlpSink;
let devices: Telemetry;
let world: World;

beforeAll(async () => {
  sink = await startOtlpSink();
  // Before any client: what they do from the start is recorded.
  devices = recordDevices(sink.url, 1);
  world = await startWorld({
    name: 'test-trace-edges',
    traceRatio: 1,
    env: {
      KEYTRAIL_OTLP_URL: sink.url,
      // A holder on a loaded machine keeps its turn: a second offer would be another edge.
      KEYTRAIL_KEY_REQUEST_HEDGE_MS: '30000',
      KEYTRAIL_KEY_REQUEST_OFFER_MS: '30000',
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  await devices?.shutdown();
  await sink?.[Symbol.asyncDispose]();
});

/** `session serves RequestKey`, `session asks presence: HGETALL`: which process, in which part, did what. */
function hopOf({ service, kind, name, attributes }: TraceSpan): string {
  const operation = name.replace(/keytrail\.\w+\.v1\.(?:\w+Service\/)?/, '');
  if (attributes['rpc.method'] !== undefined)
    return `${service} ${kind === 'server' ? 'serves' : 'calls'} ${operation}`;
  if (attributes['db.system.name'] !== undefined) return `${attributes['db.system.name']} ${operation}`;
  const notification = attributes['keytrail.notification.kind'];
  return `${service}: ${operation}${notification === undefined ? '' : ` ${notification}`}`;
}

/** Each edge once, sorted: which hop led to which. */
function edgesOf(tree: TraceTree): string[] {
  const byId = new Map(tree.spans.map((span) => [span.spanId, span]));
  const edges = tree.spans.flatMap((span) => {
    const parent = byId.get(span.parentSpanId);
    return parent ? [`${hopOf(parent)} > ${hopOf(span)}`] : [];
  });
  return [...new Set(edges)].sort();
}

const toStores = (edges: readonly string[]) => edges.filter((edge) => /> (postgresql|redis) /.test(edge));
const betweenHops = (edges: readonly string[]) => edges.filter((edge) => !/> (postgresql|redis) /.test(edge));

/** Those of a miss, the request, its fulfilment, and the hit at last: all that a process hands on to another, or to a part of itself. */
const edgesOfACure = `
devices: open session > devices calls GetInitialSession
devices calls GetInitialSession > session serves GetInitialSession
session serves GetInitialSession > session calls CheckEntitlement
session serves GetInitialSession > session calls GetDevices
session serves GetInitialSession > session calls ListOnline
session calls CheckEntitlement > conversation serves CheckEntitlement
session calls GetDevices > identity-keys serves GetDevices
session calls ListOnline > presence serves ListOnline
devices: open session > devices: recover key
devices: recover key > devices calls RequestKey
devices calls RequestKey > session serves RequestKey
session serves RequestKey > session calls CheckEntitlement
session serves RequestKey > session calls GetDevices
session serves RequestKey > session calls ListOnline
session serves RequestKey > session: outbox wait
session serves RequestKey > session: publish notification_requested
session: publish notification_requested > presence: process notification_requested
presence: process notification_requested > presence: deliver notification KEY_OFFERED
presence: deliver notification KEY_OFFERED > devices: receive notification KEY_OFFERED
devices: receive notification KEY_OFFERED > devices: answer offer
devices: answer offer > devices calls ClaimPrekeyBundles
devices: answer offer > devices calls GetDevices
devices: answer offer > devices calls ListDeviceLog
devices: answer offer > devices: open session
devices: answer offer > devices calls FulfillKeyRequest
devices calls ClaimPrekeyBundles > identity-keys serves ClaimPrekeyBundles
devices calls GetDevices > identity-keys serves GetDevices
devices calls ListDeviceLog > identity-keys serves ListDeviceLog
identity-keys serves GetDevices > identity-keys calls ListSharedUsers
identity-keys calls ListSharedUsers > conversation serves ListSharedUsers
devices calls FulfillKeyRequest > session serves FulfillKeyRequest
session serves FulfillKeyRequest > session calls CheckEntitlement
session serves FulfillKeyRequest > session calls GetDevices
session serves FulfillKeyRequest > session: publish key_delivered
session serves FulfillKeyRequest > session: outbox wait
session serves FulfillKeyRequest > session: publish notification_requested
presence: process notification_requested > presence: deliver notification KEY_DELIVERED
presence: deliver notification KEY_DELIVERED > devices: receive notification KEY_DELIVERED
devices: recover key > devices calls GetInitialSession
devices: recover key > devices calls AckKey
devices calls AckKey > session serves AckKey
devices: open session > devices calls GetDevices
devices: open session > devices calls ListDeviceLog
devices: open session > devices calls ListRosterChanges
devices: recover key > devices calls GetDevices
devices: recover key > devices calls ListDeviceLog
devices: recover key > devices calls ListRosterChanges
devices calls ListRosterChanges > conversation serves ListRosterChanges
`
  .trim()
  .split('\n')
  .sort();

/** Statements and commands that such a trace cannot be without, of each store of each service. */
const storesOfACure = [
  'session serves GetInitialSession > postgresql read_initial_session',
  'session serves GetInitialSession > postgresql read_miss_facts',
  'session serves RequestKey > postgresql insert_key_requests',
  'session serves RequestKey > postgresql outbox_add',
  'session serves RequestKey > postgresql commit',
  'session serves FulfillKeyRequest > postgresql fulfill_with_envelopes',
  'session serves FulfillKeyRequest > postgresql outbox_add',
  'session serves AckKey > postgresql mark_envelope_opened',
  'conversation serves CheckEntitlement > postgresql conversations_find_with_sessions',
  'conversation serves ListRosterChanges > postgresql roster_log_page',
  'identity-keys serves GetDevices > postgresql device_lists_read',
  'identity-keys serves ClaimPrekeyBundles > postgresql claim_prekey_bundles',
  'identity-keys serves ClaimPrekeyBundles > redis EVALSHA spend',
  'presence serves ListOnline > redis HGETALL',
  'presence: process notification_requested > redis HGETALL',
];

type Wire = 'grpc' | 'web';

/** A session that bob's new tablet lacks, which speaks the wire; the holders speak gRPC. */
async function lackingTablet(wire: Wire) {
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = await world.online(a, 'phone');
  const bob = await world.online(b, 'phone');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
  await alice.send(conversationId, 'hello');
  const { constellation } = world;
  const web = () => ({
    transports: createWebTransports({
      targets: {
        identityKeys: constellation.webUrl('identity-keys'),
        conversation: constellation.webUrl('conversation'),
        session: constellation.webUrl('session'),
        presence: constellation.webUrl('presence'),
      },
      token: () => constellation.issuer.token({ userId: b, deviceId: 'tablet' }),
    }),
  });
  const tablet = await world.further(bob, b, 'tablet', wire === 'web' ? web() : {});
  return { alice, bob, tablet, conversationId, sessionId };
}

const has = (edge: string) => (tree: TraceTree) => edgesOf(tree).includes(edge);

async function completeTrace(traceId: string, edges: readonly string[]): Promise<TraceTree> {
  await devices.flush();
  const complete = (tree: TraceTree) => tree.orphans.length === 0 && edges.every((edge) => has(edge)(tree));
  return sink.trace(traceId, complete);
}

describe.each<Wire>(['grpc', 'web'])('a miss and its cure, asked for over %s', (wire) => {
  test('is one tree whose edges are the declared ones, over every service, store and wire, and back', async () => {
    const { tablet, conversationId, sessionId } = await lackingTablet(wire);
    await tablet.attach();
    const opened = await tablet.openSession(conversationId, sessionId);
    expect(opened.origin).toBe('recovered');
    const tree = await completeTrace(opened.traceId ?? '', [...edgesOfACure, ...storesOfACure]);
    expect(tree.orphans).toEqual([]);
    expect(tree.roots.map(({ span }) => hopOf(span))).toEqual(['devices: open session']);
    expect(betweenHops(edgesOf(tree))).toEqual(edgesOfACure);
    expect(toStores(edgesOf(tree))).toEqual(expect.arrayContaining(storesOfACure));

    const called = tree.spans.filter(({ name, kind }) => kind === 'server' && name.endsWith('/RequestKey'));
    expect(called.map(({ attributes }) => attributes['rpc.system.name'])).toEqual([
      wire === 'web' ? 'connectrpc' : 'grpc',
    ]);
    // The wait in the outbox is part of the time that the user waits: each publication has its own.
    const published = ({ spans }: TraceTree) =>
      spans.filter(({ kind, service }) => kind === 'producer' && service === 'session');
    const waits = ({ spans }: TraceTree) => spans.filter(({ name }) => name === 'outbox wait');
    const idsOf = (spans: readonly TraceSpan[]) =>
      spans.map(({ attributes }) => String(attributes['messaging.message.id'])).sort();
    const waited = await sink.trace(
      tree.id,
      (current) => waits(current).length === published(current).length && current.spans.length >= tree.spans.length,
    );
    expect(idsOf(waits(waited))).toEqual(idsOf(published(waited)));
    for (const { attributes } of published(waited))
      expect(attributes['keytrail.outbox.wait_ms']).toEqual(expect.any(Number));
  });
});

test('a request that waits goes on in its own trace when a holder comes, from the dispatch to the key', async () => {
  const { alice, bob, tablet, conversationId, sessionId } = await lackingTablet('grpc');
  await Promise.all([alice.detach(), bob.detach()]);
  await tablet.attach();
  let traceId = '';
  const asked = await withSpan('ask', { parent: ROOT_CONTEXT }, () => {
    traceId = currentTraceId();
    return tablet.requestKey(conversationId, sessionId);
  });
  expect(asked.recovery).toBe('PENDING_NO_HOLDER_ONLINE');
  const delivered = new Promise((resolve) => tablet.on('keyDelivered', resolve));
  await alice.attach();
  await delivered;
  const tree = await completeTrace(traceId, [
    'session serves RequestKey > session: dispatch key request',
    'session: dispatch key request > session: publish notification_requested',
    'devices: receive notification KEY_OFFERED > devices: answer offer',
    'devices: receive notification KEY_DELIVERED > devices: open session',
    'devices: open session > devices calls GetInitialSession',
    'devices: receive notification KEY_DELIVERED > devices: acknowledge key',
    'devices: acknowledge key > devices calls AckKey',
  ]);
  expect(tree.roots).toHaveLength(1);
});

/** What carries a notification from the gateway that heard of it to the one that holds the device's stream. */
const viaGateway = (kind: string) => [
  'presence: process notification_requested > presence: publish keytrail.gateway.{gateway}.deliver',
  'presence: publish keytrail.gateway.{gateway}.deliver > presence: process keytrail.gateway.{gateway}.*',
  `presence: process keytrail.gateway.{gateway}.* > presence: deliver notification ${kind}`,
];
const direct = (kind: string) => `presence: process notification_requested > presence: deliver notification ${kind}`;
const lastOf = (edges: readonly string[]) => edges.at(-1) ?? '';

describe('with two gateways, the holders on one and the device that lacks the key on the other', () => {
  let gateways: World;
  beforeAll(async () => {
    gateways = await startWorld({
      name: 'test-trace-gateways',
      traceRatio: 1,
      replicas: { presence: 2 },
      env: {
        KEYTRAIL_OTLP_URL: sink.url,
        KEYTRAIL_KEY_REQUEST_HEDGE_MS: '30000',
        KEYTRAIL_KEY_REQUEST_OFFER_MS: '30000',
      },
    });
  }, 60_000);
  afterAll(async () => {
    await gateways?.[Symbol.asyncDispose]();
  });

  /** The transports of a device whose stream is at that replica of presence. */
  function at(replica: number, userId: string, deviceId: string) {
    const { constellation } = gateways;
    return {
      transports: createNodeTransports({
        targets: {
          identityKeys: constellation.grpcTarget('identity-keys'),
          conversation: constellation.grpcTarget('conversation'),
          session: constellation.grpcTarget('session'),
          presence: constellation.of('presence')[replica]?.grpcTarget ?? '',
        },
        token: () => constellation.issuer.token({ userId, deviceId }),
      }),
    };
  }

  async function traceOfACure(): Promise<string> {
    const [a, b] = [someone('alice'), someone('bob')];
    const alice = await gateways.online(a, 'phone', at(1, a, 'phone'));
    const bob = await gateways.online(b, 'phone', at(1, b, 'phone'));
    const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
    await alice.send(conversationId, 'hello');
    const tablet = await gateways.further(bob, b, 'tablet', at(0, b, 'tablet'));
    await tablet.attach();
    const opened = await tablet.openSession(conversationId, sessionId);
    await Promise.all([alice, bob, tablet].map((client) => client.detach()));
    return opened.traceId ?? '';
  }

  test('the hop from gateway to gateway is in the tree of the cure, and else there is nothing but the declared edges', async () => {
    const kinds = ['KEY_OFFERED', 'KEY_DELIVERED'];
    const hopped = new Set<string>();
    // Which gateway hears of a notification is up to NATS: each is heard by the other one in half of the cures.
    for (let cures = 0; hopped.size < kinds.length && cures < 24; cures += 1) {
      const traceId = await traceOfACure();
      const shared = edgesOfACure.filter((edge) => !kinds.map(direct).includes(edge));
      await devices.flush();
      const tree = await sink.trace(traceId, (seen) => {
        const edges = edgesOf(seen);
        const reached = (kind: string) => [direct(kind), lastOf(viaGateway(kind))].some((edge) => edges.includes(edge));
        return seen.orphans.length === 0 && [...shared].every((edge) => edges.includes(edge)) && kinds.every(reached);
      });
      const over = kinds.filter((kind) => has(lastOf(viaGateway(kind)))(tree));
      const ways = kinds.flatMap((kind) => (over.includes(kind) ? viaGateway(kind) : [direct(kind)]));
      expect(tree.orphans).toEqual([]);
      expect(betweenHops(edgesOf(tree))).toEqual([...new Set([...shared, ...ways])].sort());
      const byId = new Map(tree.spans.map((span) => [span.spanId, span]));
      for (const span of tree.spans.filter(({ name }) => name === 'process keytrail.gateway.{gateway}.*'))
        expect(span.instance).not.toBe(byId.get(span.parentSpanId)?.instance);
      for (const kind of over) hopped.add(kind);
    }
    expect([...hopped].sort()).toEqual([...kinds].sort());
  }, 120_000);
});

describe('the registry of attributes', () => {
  test('declares every attribute of every span, link, event and resource that was exported', () => {
    const declared = (reference: readonly { name: string }[]) => reference.map(({ name }) => name);
    const spans = sink.spans();
    expect(spans.length).toBeGreaterThan(100);
    const undeclared = (names: Iterable<string>, reference: readonly { name: string }[]) =>
      [...new Set(names)].filter((name) => !declared(reference).includes(name));
    const ofSpans = spans.flatMap(({ attributes, links }) => [
      ...Object.keys(attributes),
      ...links.flatMap((link) => Object.keys(link.attributes)),
    ]);
    expect(undeclared(ofSpans, attributeReference)).toEqual([]);
    const ofEvents = spans.flatMap(({ events }) => events.flatMap((event) => Object.keys(event.attributes)));
    expect(undeclared(ofEvents, eventReference)).toEqual([]);
    expect(undeclared(sink.resourceAttributes(), resourceReference)).toEqual([]);
  });
});
