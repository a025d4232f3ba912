import { randomUUID } from 'node:crypto';
import { create, fromBinary } from '@bufbuild/protobuf';
import { type Client, Code, createClient } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-web';
import { createAuthenticator } from '@keytrail/auth';
import { startIssuer } from '@keytrail/auth/issuer';
import {
  ConversationService,
  IdentityKeysService,
  NotificationKind,
  NotificationSchema,
  PresenceService,
  type UserErased,
  UserErasedSchema,
} from '@keytrail/contracts';
import {
  connectEvents,
  deviceAttached,
  type EventBus,
  notificationRequested,
  publishHint,
  subscribeCore,
  userErased,
  userErasureRequested,
} from '@keytrail/events';
import { ensureNats, ensureRedis, type ServerHandle } from '@keytrail/local';
import { createGrpcTransport, type RunningServer, readRefusal, startServer, unary } from '@keytrail/rpc';
import { startTelemetry } from '@keytrail/telemetry';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { readConfig } from '../src/config.ts';
import { Attachment } from '../src/domain/attachment.ts';
import { Gateway } from '../src/gateway.ts';
import { type RunningPresence, startPresence } from '../src/service.ts';
import { LeaseStore } from '../src/store/lease-store.ts';

const credential = 'a-development-credential-of-32-characters';
let redis: ServerHandle;
let nats: ServerHandle;
let issuer: Awaited<ReturnType<typeof startIssuer>>;
let conversation: RunningServer;
let identityKeys: RunningServer;
let environment: Record<string, string>;
let bus: EventBus;
const closing: (() => Promise<unknown> | unknown)[] = [];

/** Users who share a conversation with everybody they ask about; all others are strangers. */
const friends = new Set(['alice', 'bob']);

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
    KEYTRAIL_SERVICE_CREDENTIAL: credential,
    KEYTRAIL_PEER_CONVERSATION: '127.0.0.1:1',
    KEYTRAIL_PEER_SESSION: '127.0.0.1:1',
    KEYTRAIL_PEER_IDENTITY_KEYS: '127.0.0.1:1',
    KEYTRAIL_GATEWAY_LEASE_MS: '900',
    KEYTRAIL_GATEWAY_RENEW_MS: '200',
    KEYTRAIL_HEARTBEAT_INTERVAL_MS: '60000',
    KEYTRAIL_LOG_LEVEL: 'error',
  };
  const config = readConfig(environment);
  const telemetry = startTelemetry({ service: 'conversation', config });
  conversation = await startServer({
    service: 'conversation',
    services: [ConversationService],
    rpcs: [
      unary(ConversationService.method.listSharedUsers, {
        allow: ['service:presence'],
        handle: ({ userId, otherUserIds }) => ({
          userIds: friends.has(userId) ? otherUserIds.filter((other) => friends.has(other)) : [],
        }),
      }),
    ],
    config: { ...config, grpcPort: 0, webPort: 0 },
    authenticator: createAuthenticator(config),
    telemetry,
  });
  // Here every device is registered; revocation.test.ts is about those that are not.
  identityKeys = await startServer({
    service: 'identity-keys',
    services: [IdentityKeysService],
    rpcs: [
      unary(IdentityKeysService.method.getPrekeyStatus, {
        allow: ['service:presence'],
        handle: () => ({ status: {} }),
      }),
      unary(IdentityKeysService.method.listRevokedDevices, { allow: ['service:presence'], handle: () => ({}) }),
    ],
    config: { ...config, grpcPort: 0, webPort: 0 },
    authenticator: createAuthenticator(config),
    telemetry,
  });
  environment.KEYTRAIL_PEER_IDENTITY_KEYS = `127.0.0.1:${identityKeys.grpcPort}`;
  environment.KEYTRAIL_PEER_CONVERSATION = `127.0.0.1:${conversation.grpcPort}`;
  bus = await connectEvents({ config, log: telemetry.log });
  await bus.ensure();
  closing.push(() => telemetry.shutdown());
});

afterAll(async () => {
  await bus?.close();
  await conversation?.stop();
  await identityKeys?.stop();
  for (const close of closing) await close();
  await issuer?.stop();
  await Promise.all([redis?.stop(), nats?.stop()]);
});

const perTest: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const close of perTest.splice(0).reverse()) await close();
});

async function gateway(changes: Record<string, string> = {}): Promise<RunningPresence> {
  const running = await startPresence(readConfig({ ...environment, ...changes }));
  perTest.push(() => running.stop());
  return running;
}

interface Device {
  readonly presence: Client<typeof PresenceService>;
}

async function webDevice(presence: RunningPresence, userId: string, deviceId: string): Promise<Device> {
  const token = await issuer.token({ userId, deviceId });
  const transport = createConnectTransport({
    baseUrl: `http://127.0.0.1:${presence.webPort}`,
    interceptors: [
      (next) => (request) => {
        request.header.set('authorization', `Bearer ${token}`);
        return next(request);
      },
    ],
  });
  return { presence: createClient(PresenceService, transport) };
}

async function device(presence: RunningPresence, userId: string, deviceId: string): Promise<Device> {
  const token = await issuer.token({ userId, deviceId });
  const transport = createGrpcTransport({
    target: `127.0.0.1:${presence.grpcPort}`,
    authorization: () => `Bearer ${token}`,
  });
  perTest.push(() => transport.close());
  return { presence: createClient(PresenceService, transport) };
}

/** Attaches and waits for the greeting. */
async function attach(at: Device, counter: bigint) {
  const leaving = new AbortController();
  perTest.push(() => leaving.abort());
  const stream = at.presence.attach({ attachCounter: counter }, { signal: leaving.signal })[Symbol.asyncIterator]();
  const first = await stream.next();
  const greeting = first.value?.message;
  if (greeting?.case !== 'greeting') throw new Error(`the first message is ${greeting?.case}`);
  return { connectionId: greeting.value.connectionId, stream, leave: () => leaving.abort() };
}

async function online(at: Device, ...userIds: string[]): Promise<string[]> {
  const { devices } = await at.presence.listOnline({ userIds });
  return devices.map(({ device: ref }) => `${ref?.userId}/${ref?.deviceId}`).sort();
}

/** Asks until the picture is as expected: bounded by the timeout of the test. */
async function untilOnline(at: Device, userIds: string[], expected: string[]): Promise<void> {
  while (JSON.stringify(await online(at, ...userIds)) !== JSON.stringify(expected)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

describe('being attached is being online', () => {
  test('a device is online from its greeting until it leaves', async () => {
    const presence = await gateway();
    const phone = await device(presence, 'alice', 'phone');
    expect(await online(phone, 'alice')).toEqual([]);
    const attached = await attach(phone, 1n);
    expect(await online(phone, 'alice')).toEqual(['alice/phone']);
    attached.leave();
    await untilOnline(phone, ['alice'], []);
  });

  test('friends see each other, and strangers look offline', async () => {
    const presence = await gateway();
    const alice = await device(presence, 'alice', 'phone');
    const bob = await device(presence, 'bob', 'phone');
    const eve = await device(presence, 'eve', 'phone');
    await attach(alice, 1n);
    await attach(eve, 1n);
    expect(await online(bob, 'alice', 'eve')).toEqual(['alice/phone']);
    expect(await online(eve, 'alice', 'eve')).toEqual(['eve/phone']);
  });

  test('the newer attachment wins and the older is told, across gateways', async () => {
    const [first, second] = [await gateway(), await gateway()];
    const here = await device(first, 'alice', 'phone');
    const there = await device(second, 'alice', 'phone');
    const older = await attach(here, 1n);
    const newer = await attach(there, 2n);
    const refusal = await older.stream.next().then(
      () => undefined,
      (error: unknown) => readRefusal(error),
    );
    expect(refusal?.reason).toBe('CONNECTION_SUPERSEDED');
    await untilOnline(there, ['alice'], ['alice/phone']);
    await there.presence.heartbeat({ connectionId: newer.connectionId });
    await expect(here.presence.heartbeat({ connectionId: older.connectionId })).rejects.toSatisfy(
      (error) => readRefusal(error).reason === 'CONNECTION_UNKNOWN',
    );
  });

  test('an attachment with a counter that is not higher loses against a live one', async () => {
    const [first, second] = [await gateway(), await gateway()];
    await attach(await device(first, 'alice', 'phone'), 7n);
    for (const presence of [first, second]) {
      await expect(attach(await device(presence, 'alice', 'phone'), 7n)).rejects.toSatisfy(
        (error) => readRefusal(error).reason === 'CONNECTION_SUPERSEDED',
      );
    }
  });

  test('a heartbeat that meets another replica is passed on to the one that holds the stream', async () => {
    const holder = await gateway({ KEYTRAIL_HEARTBEAT_INTERVAL_MS: '400' });
    const other = await gateway();
    const attached = await attach(await device(holder, 'alice', 'phone'), 1n);
    const elsewhere = await device(other, 'alice', 'phone');
    const ended = attached.stream.next().then(
      () => 'ended',
      () => 'ended',
    );
    // Five intervals, of which three missed in a row would end it.
    for (let beat = 0; beat < 10; beat += 1) {
      await elsewhere.presence.heartbeat({ connectionId: attached.connectionId });
      const outcome = await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 200, 'beating'))]);
      expect(outcome).toBe('beating');
    }
  });

  test('a device that misses three heartbeats is offline', async () => {
    const presence = await gateway({ KEYTRAIL_HEARTBEAT_INTERVAL_MS: '100' });
    const phone = await device(presence, 'alice', 'phone');
    const attached = await attach(phone, 1n);
    await expect(attached.stream.next()).rejects.toSatisfy(
      (error) => readRefusal(error).reason === 'CONNECTION_UNKNOWN',
    );
    await untilOnline(phone, ['alice'], []);
  });
});

describe('the picture heals by itself', () => {
  test('after FLUSHALL live streams stay, are online again, and still get notifications', async () => {
    const presence = await gateway();
    const phone = await device(presence, 'alice', 'phone');
    const attached = await attach(phone, 1n);
    const { Redis } = await import('ioredis');
    const admin = new Redis(redis.url);
    await admin.flushall();
    admin.disconnect();
    await untilOnline(phone, ['alice'], ['alice/phone']);
    await notify('alice', 'phone');
    expect((await attached.stream.next()).value?.message.case).toBe('notification');
  });

  test('a gateway that stops without a word leaves no ghosts beyond its lease', async () => {
    const survivor = await gateway();
    const watcher = await device(survivor, 'bob', 'phone');
    const { Redis } = await import('ioredis');
    const admin = new Redis(redis.url);
    perTest.push(() => admin.disconnect());
    // What a killed gateway leaves: device entries that point to a lease which nobody renews.
    await admin.zadd('keytrail:gateways', Date.now() + 300, 'dead');
    await admin.hset('keytrail:devices:{alice}', 'phone', '5|dead|11111111-1111-4111-8111-111111111111|1');
    expect(await online(watcher, 'alice')).toEqual(['alice/phone']);
    await untilOnline(watcher, ['alice'], []);
    // And it does not keep the device from attaching again, even with a counter that was reset.
    await attach(await device(survivor, 'alice', 'phone'), 1n);
    expect(await online(watcher, 'alice')).toEqual(['alice/phone']);
  });

  test('a draining gateway says so before its streams end', async () => {
    const presence = await startPresence(readConfig(environment));
    const attached = await attach(await device(presence, 'alice', 'phone'), 1n);
    const next = attached.stream.next();
    await Promise.all([
      presence.stop(),
      next.then(({ value }) => {
        expect(value?.message.case).toBe('draining');
      }),
    ]);
  });
});

async function notify(userId: string, deviceId: string): Promise<void> {
  await publishHint(bus, notificationRequested.session, {
    devices: [{ userId, deviceId }],
    notification: { kind: NotificationKind.KEY_OFFERED, keyRequestId: 'c0ffee00-0000-4000-8000-000000000000' },
  });
}

describe('notifications', () => {
  test('reach the gateway that holds the stream, whichever replica consumes them', async () => {
    const [first, second] = [await gateway(), await gateway()];
    const one = await attach(await device(first, 'alice', 'phone'), 1n);
    const two = await attach(await device(second, 'alice', 'laptop'), 1n);
    for (let round = 0; round < 5; round += 1) {
      await notify('alice', 'phone');
      await notify('alice', 'laptop');
      for (const each of [one, two]) {
        const { value } = await each.stream.next();
        expect(value?.message).toMatchObject({ case: 'notification', value: { kind: NotificationKind.KEY_OFFERED } });
      }
    }
  });

  test('to a whole user reach every attached device of the user', async () => {
    const presence = await gateway();
    const phone = await attach(await device(presence, 'alice', 'phone'), 1n);
    const laptop = await attach(await device(presence, 'alice', 'laptop'), 1n);
    await publishHint(bus, notificationRequested.conversation, {
      userIds: ['alice'],
      notification: { kind: NotificationKind.MESSAGE_ADDED },
    });
    for (const each of [phone, laptop]) expect((await each.stream.next()).value?.message.case).toBe('notification');
  });

  test('an attaching device is announced, so that waiting requests go on', async () => {
    const presence = await gateway();
    const announced = await bus.jetstream.consumers.get(deviceAttached.stream, {
      filter_subjects: [deviceAttached.subject],
    });
    const messages = await announced.consume();
    perTest.push(() => messages.close());
    await attach(await device(presence, 'carol', 'phone'), 1n);
    for await (const message of messages) {
      if (new TextDecoder().decode(message.data).includes('carol')) break;
    }
  });
});

function attachmentOf(userId: string, deviceId: string): Attachment {
  return new Attachment({
    userId,
    deviceId,
    connectionId: randomUUID(),
    counter: 1n,
    attachedAt: new Date(),
    tokenExpiresAtMs: Number.POSITIVE_INFINITY,
    nowMs: performance.now(),
    maxQueued: 3,
  });
}

describe('an erased user', () => {
  test('has no stream and no entry left, whichever gateway held them, and is reported each time', async () => {
    const [first, second] = [await gateway(), await gateway()];
    const phone = await attach(await device(first, 'erin', 'phone'), 1n);
    const tablet = await attach(await device(second, 'erin', 'tablet'), 1n);
    const friend = await attach(await device(second, 'bob', 'phone'), 1n);
    const reports: UserErased[] = [];
    const arrived = Promise.withResolvers<void>();
    const reporting = subscribeCore(bus, userErased.presence.subject, async (bytes) => {
      if (reports.push(fromBinary(UserErasedSchema, bytes)) === 2) arrived.resolve();
    });
    perTest.push(() => reporting.stop());
    await bus.connection.flush();
    const requested = { erasureId: randomUUID(), userId: 'erin', deviceIds: ['phone', 'tablet'] };
    await publishHint(bus, userErasureRequested, requested);
    for (const { stream } of [phone, tablet])
      await expect(stream.next()).rejects.toSatisfy((error) => readRefusal(error).reason === 'DEVICE_REVOKED');
    await publishHint(bus, userErasureRequested, requested);
    await arrived.promise;
    expect(reports.map(({ erasureId, report }) => [erasureId, report?.service, report?.counts[0]?.erased])).toEqual([
      [requested.erasureId, 'presence', 2n],
      [requested.erasureId, 'presence', 0n],
    ]);
    const client = new Redis(redis.url);
    perTest.push(() => client.disconnect());
    expect(await client.keys('*erin*')).toEqual([]);
    await notify('bob', 'phone');
    expect((await friend.stream.next()).value?.message.case).toBe('notification');
  });

  test('loses the streams on every gateway, and has no entry, when Redis was emptied', async () => {
    const hour = '3600000';
    const never = {
      KEYTRAIL_GATEWAY_LEASE_MS: hour,
      KEYTRAIL_GATEWAY_RENEW_MS: hour,
      KEYTRAIL_PRESENCE_SWEEP_MS: hour,
    };
    const [first, second] = [await gateway(never), await gateway(never)];
    const phone = await attach(await device(first, 'frida', 'phone'), 1n);
    const tablet = await attach(await device(second, 'frida', 'tablet'), 1n);
    const client = new Redis(redis.url);
    perTest.push(() => client.disconnect());
    await client.flushall();
    await publishHint(bus, userErasureRequested, { erasureId: randomUUID(), userId: 'frida', deviceIds: [] });
    for (const { stream } of [phone, tablet])
      await expect(stream.next()).rejects.toSatisfy((error) => readRefusal(error).reason === 'DEVICE_REVOKED');
    expect(await client.keys('*frida*')).toEqual([]);
  });

  test('whose device does not read its stream to the end gets no entry again', async () => {
    const leases = new LeaseStore({ url: redis.url, clusterUrls: [], deviceTtlMs: 60_000, onError: () => {} });
    perTest.push(() => leases.close());
    const holding = new Gateway({ leases, bus, leaseMs: 60_000, log: { info() {}, warn() {} } });
    await holding.open();
    perTest.push(() => holding.close());
    const [phone, desk] = ['phone', 'desk'].map((deviceId) => attachmentOf('gudrun', deviceId));
    if (!phone || !desk) throw new Error('there are two');
    for (const attachment of [phone, desk]) {
      holding.attachments.put(attachment);
      await holding.assert(attachment);
    }
    phone.end('revoked');
    await leases.forget('gudrun');
    await holding.assertAll();
    expect((await leases.findAll(['gudrun'])).map(({ deviceId }) => deviceId)).toEqual(['desk']);
  });
});

test('a revoked device gets nothing of what was queued for it, and one that is only to attach elsewhere gets all of it', async () => {
  const hint = () => create(NotificationSchema, { kind: NotificationKind.PREKEYS_LOW });
  const never = new AbortController().signal;
  for (const why of ['revoked', 'not-registered'] as const) {
    const attachment = attachmentOf('hanna', 'phone');
    attachment.deliver(hint());
    // It may have been about to end for another reason.
    attachment.end('draining');
    attachment.end(why);
    expect(await attachment.next(never)).toBeUndefined();
  }
  const drained = attachmentOf('hanna', 'phone');
  for (let i = 0; i < 2; i += 1) drained.deliver(hint());
  drained.end('draining');
  expect([await drained.next(never), await drained.next(never)]).toEqual([hint(), hint()]);
  expect(await drained.next(never)).toBeUndefined();
});

describe('bad input', () => {
  const table: [string, (at: Device) => Promise<unknown>, string][] = [
    [
      'an attach counter of 0',
      (at) => at.presence.attach({ attachCounter: 0n })[Symbol.asyncIterator]().next(),
      'attach_counter',
    ],
    ['a connection id that is no UUID', (at) => at.presence.heartbeat({ connectionId: 'x' }), 'connection_id'],
    ['no user ids', (at) => at.presence.listOnline({ userIds: [] }), 'user_ids'],
    ['a user id with a space', (at) => at.presence.listOnline({ userIds: ['a b'] }), 'user_ids[0]'],
    ['a user id twice', (at) => at.presence.listOnline({ userIds: ['a', 'a'] }), 'user_ids'],
  ];
  const wires = ['gRPC', 'web'] as const;
  test.each(wires.flatMap((wire) => table.map((row) => [wire, ...row] as const)))(
    'on the %s wire: %s is INVALID_FIELD and names the field',
    async (wire, _, send, field) => {
      const presence = await gateway();
      const at =
        wire === 'gRPC' ? await device(presence, 'alice', 'phone') : await webDevice(presence, 'alice', 'phone');
      const refusal = await send(at).then(
        () => undefined,
        (error: unknown) => readRefusal(error),
      );
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
      expect(refusal?.fields.map((problem) => problem.field)).toContain(field);
    },
  );
});

describe('the web wire', () => {
  test('attaches, is notified and is listed like the gRPC wire', async () => {
    const presence = await gateway();
    const tab = await webDevice(presence, 'alice', 'tab');
    const attached = await attach(tab, 1n);
    expect(await online(tab, 'alice')).toEqual(['alice/tab']);
    await tab.presence.heartbeat({ connectionId: attached.connectionId });
    await notify('alice', 'tab');
    expect((await attached.stream.next()).value?.message.case).toBe('notification');
  });
});
