import { appendFileSync, readFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { type ClientOptions, type KeytrailClient, memoryKeyStore } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';
import { createWebTransports } from '@keytrail/client/web';
import { attr, ROOT_CONTEXT, type Telemetry, withSpan } from '@keytrail/telemetry';
import { connect, type NatsConnection } from '@nats-io/transport-node';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { Canaries, type Find, plantingPrimitives } from './canaries.ts';
import { incidents, type Scene } from './canary-incidents.ts';
import { recordDevices } from './devices-telemetry.ts';
import { type OtlpSink, startOtlpSink } from './otlp-sink.ts';
import { startWorld, type World } from './world.ts';

/** What may stand nowhere outside, and who people and devices are, which some places must know. */
const secrets = new Canaries();
const identities = new Canaries();
const errors: {
  readonly about: string;
  /** Whom the caller named: itself, and those of its request. */
  readonly named: readonly string[];
  readonly text: string;
}[] = [];
/** What operators were told, by calls and by commands. */
const answered: { readonly where: string; readonly text: string }[] = [];
/** Subject, headers but the aggregate, the aggregate, and the body. */
const tapped: { readonly head: string; readonly aggregate: string; readonly body: string }[] = [];
const aggregateHeader = 'Keytrail-Aggregate';
const messageText = 'canary text: meet me at the old mill at nine';

let sink: OtlpSink;
let devices: Telemetry;
let world: World;
let tap: NatsConnection;

beforeAll(async () => {
  sink = await startOtlpSink();
  devices = recordDevices(sink.url, 1);
  world = await startWorld({
    name: 'test-canaries',
    traceRatio: 1,
    env: {
      KEYTRAIL_OTLP_URL: sink.url,
      KEYTRAIL_METRICS_EXPORT_MS: '250',
      // Whatever a service would ever tell.
      KEYTRAIL_LOG_LEVEL: 'trace',
      KEYTRAIL_ERASURE_ROUND_MS: '500',
      KEYTRAIL_REVOCATIONS_PULL_MS: '500',
    },
  });
  tap = await connect({ servers: world.constellation.nats.url });
  tap.subscribe('>', {
    callback: (_, message) => {
      const headers = [...(message.headers ?? [])].filter(([name]) => name !== aggregateHeader);
      tapped.push({
        head: [message.subject, ...headers.flat(2)].join('\n'),
        aggregate: message.headers?.get(aggregateHeader) ?? '',
        body: Buffer.from(message.data).toString('latin1'),
      });
    },
  });
  await tap.flush();
  secrets.text('service credential', world.constellation.serviceCredential);
  secrets.text('message text', messageText);
});
afterAll(async () => {
  await tap?.close();
  await world?.[Symbol.asyncDispose]();
  await devices?.shutdown();
  await sink?.[Symbol.asyncDispose]();
});

async function tokenOf(userId: string, deviceId: string, scopes: readonly string[] = []): Promise<string> {
  identities.text('user id', userId);
  identities.text('device id', deviceId);
  const token = await world.constellation.issuer.token({ userId, deviceId, scopes: [...scopes] });
  secrets.text('token', token);
  // Whoever has it only needs to guess no more than that.
  secrets.text('signature of a token', token.slice(token.lastIndexOf('.') + 1));
  return token;
}

function planted(userId: string, deviceId: string, wire: 'grpc' | 'web'): Partial<ClientOptions> {
  const { constellation } = world;
  const token = () => tokenOf(userId, deviceId);
  const at = (of: (service: 'identity-keys' | 'conversation' | 'session' | 'presence') => string) => ({
    identityKeys: of('identity-keys'),
    conversation: of('conversation'),
    session: of('session'),
    presence: of('presence'),
  });
  return {
    primitives: plantingPrimitives(nodePrimitives, secrets),
    keyStore: memoryKeyStore(),
    // Whoever holds a key declines to give it to that one.
    deviceTrust: (device) => device.deviceId !== untrustedDevice,
    transports:
      wire === 'grpc'
        ? createNodeTransports({ targets: at(constellation.grpcTarget), token })
        : createWebTransports({ targets: at(constellation.webUrl), token }),
  };
}

async function refused(about: string, named: readonly string[], work: Promise<unknown>): Promise<unknown> {
  const error = await work.then(
    () => {
      throw new Error(`${about} was not refused`);
    },
    (thrown: unknown) => thrown,
  );
  errors.push({ about, named, text: inFull(error) });
  return error;
}

/** An error with all it carries, causes and details too. */
function inFull(error: unknown): string {
  const seen = new Set<unknown>();
  const tell = (value: unknown): unknown => {
    if (typeof value === 'bigint') return String(value);
    if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('hex');
    if (typeof value !== 'object' || value === null) return value;
    if (seen.has(value)) return '[told already]';
    seen.add(value);
    if (value instanceof Headers) return [...value];
    if (Array.isArray(value)) return value.map(tell);
    const names = new Set([...Object.getOwnPropertyNames(value), 'message', 'cause']);
    return Object.fromEntries([...names].map((name) => [name, tell((value as Record<string, unknown>)[name])]));
  };
  return JSON.stringify(tell(error));
}

async function postWeb(service: 'session' | 'conversation', method: string, token: string, body: string) {
  const response = await fetch(`${world.constellation.webUrl(service)}/${method}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
    body,
  });
  const text = await response.text();
  return { status: response.status, text: `${text}\n${[...response.headers].join('\n')}` };
}

const [alice, bob, eve] = ['canary-user-alice-5b1e', 'canary-user-bob-77d0', 'canary-user-eve-c3aa'] as const;
const untrustedDevice = 'canary-untrusted-of-bob';
const ofEve = [eve, 'canary-phone-of-eve'];

/** The main path on both wires, a miss and its cure, refusals of every kind, and a fault of the server. */
async function live(): Promise<Scene> {
  const phone: KeytrailClient = await world.online(
    alice,
    'canary-phone-of-alice',
    planted(alice, 'canary-phone-of-alice', 'grpc'),
  );
  const own = await world.online(bob, 'canary-phone-of-bob', planted(bob, 'canary-phone-of-bob', 'grpc'));
  const { conversationId, sessionId } = await phone.createConversation({ kind: 'direct', members: [bob] });
  await phone.send(conversationId, messageText);
  expect(await own.messages(conversationId)).toMatchObject([{ text: messageText }]);

  const tablet = await world.further(own, bob, 'canary-tablet-of-bob', planted(bob, 'canary-tablet-of-bob', 'web'));
  await refused('a miss', [bob, tablet.device], tablet.openSession(conversationId, sessionId, { recover: false }));
  await tablet.attach();
  expect(await tablet.openSession(conversationId, sessionId)).toMatchObject({ origin: 'recovered' });
  await tablet.send(conversationId, messageText);
  await phone.rotate(conversationId);

  const stranger = world.device(eve, 'canary-phone-of-eve', planted(eve, 'canary-phone-of-eve', 'grpc'));
  await stranger.register();
  await refused('a stranger', ofEve, stranger.openSession(conversationId, sessionId));
  await refused('a stranger on the web', ofEve, stranger.messages(conversationId));

  const token = await tokenOf(eve, 'canary-phone-of-eve');
  const read = 'keytrail.session.v1.SessionService/GetInitialSession';
  const forged = `${token.slice(0, -8)}AAAAAAAA`;
  secrets.text('forged token', forged);
  for (const [about, method, as, body] of [
    ['a forged token', read, forged, '{}'],
    ['no token', read, '', '{}'],
    ['an unknown method', 'keytrail.session.v1.SessionService/Nothing', token, '{}'],
    ['a field that is none', read, token, JSON.stringify({ [messageText]: 1 })],
    ['a value of another kind', read, token, JSON.stringify({ conversationId: { secret: messageText } })],
    ['no JSON', read, token, `{"conversationId": ${messageText}`],
    ['a value against the rules', read, token, JSON.stringify({ conversationId: messageText.repeat(50) })],
  ] as const) {
    const { status, text } = await postWeb('session', method, as, body);
    expect(status, about).toBeGreaterThanOrEqual(400);
    errors.push({ about, named: as === '' ? [] : ofEve, text });
  }

  const database = new pg.Client({ connectionString: world.constellation.databaseUrls.session });
  await database.connect();
  try {
    // A fault of the server whose error names a value: SQL that PostgreSQL refuses, quoting what it was given.
    await database.query('ALTER TABLE envelopes RENAME TO envelopes_away');
    await refused('a fault', [bob, own.device], own.openSession(conversationId, 'canary-session-that-is-not'));
    await refused(
      'a fault on the web',
      [bob, tablet.device],
      tablet.openSession(conversationId, 'canary-session-that-is-not'),
    );
  } finally {
    await database.query('ALTER TABLE envelopes_away RENAME TO envelopes');
    await database.end();
  }

  const untrusted = await world.further(own, bob, untrustedDevice, planted(bob, untrustedDevice, 'grpc'));
  return {
    world,
    alice,
    bob,
    eve,
    phoneOfBob: own,
    tabletOfBob: tablet,
    untrusted,
    phoneOfEve: stranger,
    conversationId,
    sessionId,
    tokenOf,
    refused,
    told: (where, answer) => void answered.push({ where, text: typeof answer === 'string' ? answer : inFull(answer) }),
  };
}

function logs(): { readonly where: string; readonly text: string }[] {
  return world.constellation.replicas.map(({ process }) => ({
    where: `log of ${process.name}`,
    text: readFileSync(process.logFile, 'utf8'),
  }));
}

function findIn(canaries: Canaries, places: readonly { where: string; text: string }[]): Find[] {
  const all = places.flatMap(({ where, text }) => canaries.findIn(where, text));
  return [...new Map(all.map((find) => [`${find.where} ${find.what}`, find])).values()];
}

const exported = () => sink.bodies.map(({ path, text }) => ({ where: `OTLP ${path}`, text }));
const events = () =>
  tapped.map(({ head, aggregate, body }) => ({ where: 'NATS', text: [head, aggregate, body].join('\n') }));
const answers = () => errors.map(({ about, text }) => ({ where: `error of ${about}`, text }));

/** Until everything that was done has been told: metrics twice, so that nothing is under way. */
async function allTold(): Promise<void> {
  await devices.flush();
  const from = sink.bodies.length;
  const services = () =>
    new Set(
      sink.bodies
        .slice(from)
        .filter(({ path }) => path === '/v1/metrics')
        .flatMap(({ text }) => /"service\.name","value":\{"stringValue":"([\w-]+)"/.exec(text)?.[1] ?? []),
    );
  await vi.waitFor(
    () =>
      expect([...services()]).toEqual(expect.arrayContaining(['conversation', 'identity-keys', 'presence', 'session'])),
    20_000,
  );
  await tap.flush();
}

describe('after the main path, refusals, faults, incidents and what operators do about them', () => {
  beforeAll(async () => {
    await incidents(await live());
    await allTold();
  }, 240_000);

  test('there was something to look through', () => {
    expect(secrets.planted).toBeGreaterThan(100);
    expect(new Set(sink.bodies.map(({ path }) => path))).toEqual(new Set(['/v1/traces', '/v1/metrics']));
    expect(tapped.length).toBeGreaterThan(10);
    expect(errors.length).toBeGreaterThan(10);
    for (const { where, text } of logs()) expect(text, where).toContain('"message":"ready"');
    const told = logs()
      .map(({ text }) => text)
      .join('');
    for (const line of ['a call was refused', 'a call ended in a miss', 'a call ended in a fault'])
      expect(told).toContain(line);
  });

  test('no token, key or text is in a span, a metric, a log, an event or an error', () => {
    expect(findIn(secrets, [...exported(), ...logs(), ...events()])).toEqual([]);
    expect(findIn(secrets, answers())).toEqual([]);
  });

  test('operators see who, as they asked, and no token, key or text: in answers and in what commands print', () => {
    expect(answered.length).toBeGreaterThan(30);
    expect(findIn(identities, answered).length).toBeGreaterThan(0);
    expect(findIn(secrets, answered)).toEqual([]);
  });

  test('who people and devices are stands in no span, metric or log: only pseudonyms leave a process', () => {
    expect(findIn(identities, [...exported(), ...logs()])).toEqual([]);
  });

  test('an error names nobody but those whom its caller named', () => {
    expect(errors.length).toBeGreaterThan(40);
    const ids = identities.texts();
    expect(ids.length).toBeGreaterThanOrEqual(10);
    const finds = errors.flatMap(({ about, named, text }) => {
      const others = new Canaries();
      for (const id of ids) if (!named.includes(id)) others.text(id, id);
      return others.findIn(about, text);
    });
    expect(finds).toEqual([]);
  });

  test('events name people and devices in their bodies and by their aggregate, to be routed by, and nowhere else', () => {
    expect(findIn(identities, events()).length).toBeGreaterThan(0);
    const heads = tapped.map(({ head }) => ({ where: 'NATS', text: head }));
    expect(findIn(identities, heads)).toEqual([]);
  });
});

test('the search finds what does leak, in each place and form', async () => {
  const leaked = new Canaries();
  const key = nodePrimitives.randomBytes(32);
  leaked.bytes('key', key);
  leaked.text('text', 'a leaking text of a message');
  const raw = Buffer.from(key);

  withSpan('leak', { parent: ROOT_CONTEXT }, (span) => {
    span.setAttribute(attr.reason, Buffer.concat([Buffer.from('x'), raw, Buffer.from('yz')]).toString('base64'));
    span.recordException({ name: 'leak', message: raw.toString('hex') });
  });
  await devices.flush();
  expect(
    findIn(leaked, exported())
      .map(({ what }) => what)
      .sort(),
  ).toEqual(['key, base64', 'key, hex']);

  const before = tapped.length;
  tap.publish('keytrail.leak', Buffer.concat([Buffer.from([1, 2]), raw]));
  await tap.flush();
  for (let left = 100; tapped.length === before && left > 0; left -= 1) await pause(20);
  expect(findIn(leaked, events())).toEqual([{ what: 'key', where: 'NATS' }]);

  const [replica] = world.constellation.of('session');
  appendFileSync(replica?.process.logFile ?? '', `${JSON.stringify({ text: 'a leaking text of a message', key })}\n`);
  expect(findIn(leaked, logs())).toEqual([
    { what: 'text', where: 'log of session' },
    { what: 'key, JSON', where: 'log of session' },
  ]);
  const told = inFull(new Error('failed', { cause: { details: [{ value: key }] } }));
  expect(leaked.findIn('error', told)).toEqual([{ what: 'key, hex', where: 'error' }]);
});
