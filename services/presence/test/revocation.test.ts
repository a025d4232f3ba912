import { type Client, createClient } from '@connectrpc/connect';
import { createAuthenticator } from '@keytrail/auth';
import { startIssuer } from '@keytrail/auth/issuer';
import { IdentityKeysService, NotificationKind, PresenceService } from '@keytrail/contracts';
import { connectEvents, deviceListChanged, type EventBus, publishHint } from '@keytrail/events';
import { ensureNats, ensureRedis, type ServerHandle } from '@keytrail/local';
import {
  createGrpcTransport,
  type Refusal,
  type RunningServer,
  readRefusal,
  refuse,
  startServer,
  unary,
} from '@keytrail/rpc';
import { startTelemetry } from '@keytrail/telemetry';
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { readConfig } from '../src/config.ts';
import { type RunningPresence, startPresence } from '../src/service.ts';

/** Until it holds; a busy machine may take its time. */
function eventually<T>(holds: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(holds, { timeout: 15_000 });
}

let redis: ServerHandle;
let nats: ServerHandle;
let issuer: Awaited<ReturnType<typeof startIssuer>>;
let environment: Record<string, string>;
let bus: EventBus;
let peer: RunningServer;
let known: IdentityKeys;
const perTest: (() => Promise<unknown> | unknown)[] = [];
const forAll: (() => Promise<unknown> | unknown)[] = [];

/** identity-keys as a small real server, whose answers a test decides. */
interface IdentityKeys {
  readonly unregistered: Set<string>;
  readonly revoked: Set<string>;
  /** Numbered from 1, as ListRevokedDevices tells them. */
  readonly revocations: { userId: string; deviceId: string }[];
  /** How many older revocations there are besides, of devices that nobody here knows. */
  older: bigint;
  /** Called before each answer. */
  before: () => Promise<void> | void;
  /** Called before each answer to GetPrekeyStatus. */
  beforeStatus: (deviceId: string) => Promise<void> | void;
  refillDue: boolean;
  asked: number;
}
const key = (userId: string, deviceId: string) => `${userId}/${deviceId}`;

function resetIdentityKeys(): void {
  known = {
    unregistered: new Set(),
    revoked: new Set(),
    revocations: [],
    older: 0n,
    before: () => {},
    beforeStatus: () => {},
    refillDue: false,
    asked: 0,
  };
}

beforeAll(async () => {
  [redis, nats] = await Promise.all([ensureRedis({ own: true }), ensureNats({ own: true })]);
  issuer = await startIssuer({ environment: 'development' });
  environment = {
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_REDIS_URL: redis.url,
    KEYTRAIL_NATS_URL: nats.url,
    KEYTRAIL_JWKS_URL: issuer.jwksUrl,
    KEYTRAIL_TOKEN_ISSUER: issuer.issuer,
    KEYTRAIL_TOKEN_AUDIENCE: issuer.audience,
    KEYTRAIL_SERVICE_CREDENTIAL: 'a-development-credential-of-32-characters',
    KEYTRAIL_PEER_CONVERSATION: '127.0.0.1:1',
    KEYTRAIL_PEER_SESSION: '127.0.0.1:1',
    KEYTRAIL_PEER_IDENTITY_KEYS: '127.0.0.1:1',
    KEYTRAIL_HEARTBEAT_INTERVAL_MS: '60000',
    KEYTRAIL_REVOCATIONS_PULL_MS: '3600000',
    KEYTRAIL_LOG_LEVEL: 'silent',
  };
  const config = readConfig(environment);
  const telemetry = startTelemetry({ service: 'identity-keys', config });
  resetIdentityKeys();
  peer = await startServer({
    service: 'identity-keys',
    services: [IdentityKeysService],
    rpcs: [
      unary(IdentityKeysService.method.getPrekeyStatus, {
        allow: ['service:presence'],
        async handle({ device }) {
          known.asked += 1;
          await known.before();
          const { userId = '', deviceId = '' } = device ?? {};
          await known.beforeStatus(deviceId);
          if (known.unregistered.has(key(userId, deviceId)))
            throw refuse('DEVICE_NOT_REGISTERED', 'no such device', { metadata: { device_id: deviceId } });
          if (known.revoked.has(key(userId, deviceId)))
            throw refuse('DEVICE_REVOKED', 'revoked', {
              metadata: { device_id: deviceId, revoked_at: '2026-11-23T00:00:00.000Z' },
            });
          return { status: { counts: { oneTime: 7, kem: 8 }, refillDue: known.refillDue } };
        },
      }),
      unary(IdentityKeysService.method.listRevokedDevices, {
        allow: ['service:presence'],
        async handle({ after, pageSize }) {
          await known.before();
          const all = Array.from({ length: known.revocations.length }, (_, index) => ({
            number: known.older + BigInt(index) + 1n,
            device: known.revocations[index],
          })).filter(({ number }) => number > after);
          // Those of other users: the next one alone is enough to be looked for, a page of them to be read over.
          const others =
            after < known.older ? [{ number: after + 1n, device: { userId: 'somebody', deviceId: 'else' } }] : [];
          const shown = [...others, ...all].slice(0, pageSize || 1000);
          return { revocations: shown, more: after + 1n < known.older };
        },
      }),
    ],
    config: { ...config, grpcPort: 0, webPort: 0, callerRequestsPerSecond: 0 },
    authenticator: createAuthenticator(config),
    telemetry,
  });
  environment.KEYTRAIL_PEER_IDENTITY_KEYS = `127.0.0.1:${peer.grpcPort}`;
  bus = await connectEvents({ config, log: telemetry.log });
  await bus.ensure();
  forAll.push(() => telemetry.shutdown());
});

afterEach(async () => {
  for (const close of perTest.splice(0).reverse()) await close();
  resetIdentityKeys();
});

afterAll(async () => {
  await bus?.close();
  await peer?.stop();
  for (const close of forAll) await close();
  await issuer?.stop();
  await Promise.all([redis?.stop(), nats?.stop()]);
});

async function gateway(changes: Record<string, string> = {}): Promise<RunningPresence> {
  const running = await startPresence(readConfig({ ...environment, ...changes }));
  perTest.push(() => running.stop());
  return running;
}

async function device(presence: RunningPresence, userId: string, deviceId: string, ttlSeconds = 3600) {
  const token = await issuer.token({ userId, deviceId, ttlSeconds });
  const transport = createGrpcTransport({
    target: `127.0.0.1:${presence.grpcPort}`,
    authorization: () => `Bearer ${token}`,
  });
  perTest.push(() => transport.close());
  return createClient(PresenceService, transport);
}

async function attach(at: Client<typeof PresenceService>, counter = 1n) {
  const leaving = new AbortController();
  perTest.push(() => leaving.abort());
  const stream = at.attach({ attachCounter: counter }, { signal: leaving.signal })[Symbol.asyncIterator]();
  const message = (await stream.next()).value?.message;
  if (message?.case !== 'greeting') throw new Error(`the first message is ${message?.case}`);
  return { greeting: message.value, stream };
}

/** What the next thing on a stream is refused with. */
function refusalOf(next: Promise<unknown>): Promise<Refusal> {
  return next.then(
    () => {
      throw new Error('it was not refused');
    },
    (error: unknown) => readRefusal(error),
  );
}

function tellRevoked(userId: string, deviceId: string): Promise<void> {
  known.revoked.add(key(userId, deviceId));
  return publishHint(bus, deviceListChanged, { userId, deviceId, version: 2n, revoked: true });
}

async function online(at: Client<typeof PresenceService>, userId: string): Promise<string[]> {
  return (await at.listOnline({ userIds: [userId] })).devices.map(({ device: ref }) => ref?.deviceId ?? '').sort();
}

describe('a revoked device', () => {
  test("loses its stream on whichever gateway holds it, and the user's other devices keep theirs", async () => {
    const [first, second] = [await gateway(), await gateway()];
    const watcher = await device(first, 'alice', 'desk');
    const desk = await attach(watcher);
    // Either gateway takes an event: of so many, some are taken by the one that does not hold the stream.
    const attached = [];
    // Also when they take turns, as the first half of the streams is here and the second there.
    for (let index = 0; index < 12; index += 1) {
      const deviceId = `phone-${index}`;
      attached.push([deviceId, await attach(await device(index < 6 ? first : second, 'alice', deviceId))] as const);
    }
    for (const [deviceId, { stream }] of attached) {
      await tellRevoked('alice', deviceId);
      expect(await refusalOf(stream.next())).toMatchObject({
        reason: 'DEVICE_REVOKED',
        metadata: { device_id: deviceId },
      });
    }
    await eventually(async () => expect(await online(watcher, 'alice')).toEqual(['desk']));
    // A change that is no revocation ends nothing: the heartbeat finds the connection.
    await publishHint(bus, deviceListChanged, { userId: 'alice', deviceId: 'desk', version: 4n, revoked: false });
    await watcher.heartbeat({ connectionId: desk.greeting.connectionId });
  });

  test('is not attached again, nor is one that was never registered', async () => {
    const presence = await gateway();
    known.revoked.add('bob/phone');
    known.unregistered.add('bob/tablet');
    expect(await refusalOf(attach(await device(presence, 'bob', 'phone')))).toMatchObject({
      reason: 'DEVICE_REVOKED',
      metadata: { device_id: 'phone', revoked_at: '2026-11-23T00:00:00.000Z' },
    });
    expect(await refusalOf(attach(await device(presence, 'bob', 'tablet')))).toMatchObject({
      reason: 'DEVICE_NOT_REGISTERED',
      metadata: { device_id: 'tablet' },
    });
    const desk = await device(presence, 'bob', 'desk');
    await attach(desk);
    expect(await online(desk, 'bob')).toEqual(['desk']);
  });

  test.each([0, 123_456])('loses its stream though its event was lost, with %s revocations before', async (older) => {
    known.older = BigInt(older);
    const presence = await gateway({ KEYTRAIL_REVOCATIONS_PULL_MS: '20' });
    const phone = await attach(await device(presence, 'carol', 'phone'));
    const other = await device(presence, 'carol', 'desk');
    const desk = await attach(other);
    known.revocations.push({ userId: 'carol', deviceId: 'phone' });
    expect(await refusalOf(phone.stream.next())).toMatchObject({ reason: 'DEVICE_REVOKED' });
    await other.heartbeat({ connectionId: desk.greeting.connectionId });
  });

  test('loses its stream though its event was lost, and identity-keys has not answered for others who attached', async () => {
    const answering = Promise.withResolvers<void>();
    const askedAgain = Promise.withResolvers<void>();
    try {
      const presence = await gateway({
        KEYTRAIL_REVOCATIONS_PULL_MS: '20',
        KEYTRAIL_ATTACH_STANDING_MS: '600000',
      });
      const phone = await attach(await device(presence, 'henry', 'phone'));
      known.beforeStatus = () => {
        throw refuse('PEER_UNAVAILABLE', 'away', { metadata: { peer: 'database' } });
      };
      await attach(await device(presence, 'henry', 'desk'));
      known.beforeStatus = () => {
        askedAgain.resolve();
        return answering.promise;
      };
      await askedAgain.promise;
      known.revocations.push({ userId: 'henry', deviceId: 'phone' });
      expect(await refusalOf(phone.stream.next())).toMatchObject({ reason: 'DEVICE_REVOKED' });
    } finally {
      answering.resolve();
    }
  });

  test('that attached while identity-keys was away loses its stream once it can be asked', async () => {
    known.before = () => {
      throw refuse('PEER_UNAVAILABLE', 'away', { metadata: { peer: 'database' } });
    };
    const presence = await gateway({ KEYTRAIL_REVOCATIONS_PULL_MS: '20' });
    const phone = await attach(await device(presence, 'dave', 'phone'));
    expect(phone.greeting.prekeyStatus).toBeUndefined();
    const desk = await attach(await device(presence, 'dave', 'desk'));
    known.revoked.add('dave/phone');
    known.refillDue = true;
    known.before = () => {};
    expect(await refusalOf(phone.stream.next())).toMatchObject({ reason: 'DEVICE_REVOKED' });
    // The other one stays, and learns now what its greeting could not say.
    expect((await desk.stream.next()).value?.message).toMatchObject({
      case: 'notification',
      value: { kind: NotificationKind.PREKEYS_LOW },
    });
  });
});

describe('the greeting', () => {
  test("has the status of the device's prekeys", async () => {
    const presence = await gateway();
    const { greeting } = await attach(await device(presence, 'erin', 'phone'));
    expect(greeting.prekeyStatus).toMatchObject({ counts: { oneTime: 7, kem: 8 }, refillDue: false });
  });

  test('comes without it when identity-keys does not answer in time: presence does not depend on it', async () => {
    const presence = await gateway({ KEYTRAIL_ATTACH_STANDING_MS: '50' });
    const answering = Promise.withResolvers<void>();
    known.before = () => answering.promise;
    try {
      const phone = await device(presence, 'frank', 'phone');
      const { greeting } = await attach(phone);
      expect(greeting.prekeyStatus).toBeUndefined();
      expect(await online(phone, 'frank')).toEqual(['phone']);
      expect(known.asked).toBeGreaterThan(0);
    } finally {
      answering.resolve();
    }
  });

  test('comes without it, and without waiting, to whoever attaches while as many are being asked for as may be', async () => {
    const answering = Promise.withResolvers<void>();
    const asked = Promise.withResolvers<void>();
    try {
      const presence = await gateway({
        KEYTRAIL_REVOCATIONS_PULL_MS: '20',
        KEYTRAIL_ATTACH_STANDING_MS: '600000',
        KEYTRAIL_ATTACH_STANDINGS_AT_ONCE: '1',
      });
      known.beforeStatus = (deviceId) => {
        if (deviceId !== 'phone') return;
        asked.resolve();
        return answering.promise;
      };
      const attaching = attach(await device(presence, 'ida', 'phone'));
      await asked.promise;
      const desk = await attach(await device(presence, 'ida', 'desk'));
      expect(desk.greeting.prekeyStatus).toBeUndefined();
      known.revoked.add('ida/tablet');
      const tablet = await attach(await device(presence, 'ida', 'tablet'));
      expect(await refusalOf(tablet.stream.next())).toMatchObject({ reason: 'DEVICE_REVOKED' });
      answering.resolve();
      expect((await attaching).greeting.prekeyStatus).toMatchObject({ counts: { oneTime: 7, kem: 8 } });
    } finally {
      answering.resolve();
    }
  });
});

test('a stream ends when its token expires, and goes on with a fresh one', async () => {
  const presence = await gateway();
  const brief = await attach(await device(presence, 'grace', 'phone', 2));
  const lasting = await device(presence, 'grace', 'desk');
  const desk = await attach(lasting);
  expect(await refusalOf(brief.stream.next())).toMatchObject({
    reason: 'TOKEN_INVALID',
    metadata: { problem: 'expired' },
  });
  await lasting.heartbeat({ connectionId: desk.greeting.connectionId });
  await attach(await device(presence, 'grace', 'phone'), 2n);
  expect(await online(lasting, 'grace')).toEqual(['desk', 'phone']);
});
