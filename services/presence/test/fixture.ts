import { type Client, createClient } from '@connectrpc/connect';
import { createAuthenticator, operatorScope } from '@keytrail/auth';
import { type Issuer, startIssuer } from '@keytrail/auth/issuer';
import {
  ConversationService,
  type GetConversationsWaitingRequest,
  type GetKeysWaitingRequest,
  type Greeting,
  IdentityKeysService,
  NotificationKind,
  PresenceService,
  SessionService,
} from '@keytrail/contracts';
import { connectEvents, type EventBus, notificationRequested, publishHint } from '@keytrail/events';
import { ensureNats, ensureRedis, type ServerHandle } from '@keytrail/local';
import { createGrpcTransport, type Refusal, readRefusal, startServer, unary } from '@keytrail/rpc';
import { startTelemetry } from '@keytrail/telemetry';
import { Redis } from 'ioredis';
import { readConfig } from '../src/config.ts';
import { type RunningPresence, startPresence } from '../src/service.ts';

type Closing = () => unknown;

/** What the other services answer, and how often they were asked. Every device is registered, and shares conversations with all. */
export interface Peers {
  asked: {
    prekeyStatus: number;
    keysWaiting: GetKeysWaitingRequest[];
    conversationsWaiting: GetConversationsWaitingRequest[];
  };
  /** Before each answer of session, and of conversation, to what waits. */
  beforeKeys: () => Promise<void> | void;
  beforeConversations: () => Promise<void> | void;
}

export interface AttachedDevice {
  readonly greeting: Greeting;
  readonly connectionId: string;
  readonly stream: AsyncIterator<{ message: { case?: string | undefined; value?: unknown } }>;
  /** Why the stream ended; undefined when it ended without a reason. */
  ended(): Promise<Refusal | undefined>;
  leave(): void;
}

export interface TestDevice {
  readonly presence: Client<typeof PresenceService>;
  attach(counter: bigint, cursors?: { conversationCursor?: string; sessionCursor?: string }): Promise<AttachedDevice>;
}

/** Redis and NATS of its own, stand-ins for the other services, and gateways in this process. */
export interface Fixture extends AsyncDisposable {
  readonly redis: ServerHandle;
  readonly nats: ServerHandle;
  readonly admin: Redis;
  readonly bus: EventBus;
  readonly peers: Peers;
  readonly environment: Readonly<Record<string, string>>;
  token(userId: string, deviceId: string): Promise<string>;
  operatorToken(): Promise<string>;
  gateway(changes?: Readonly<Record<string, string>>): Promise<RunningPresence>;
  device(at: { readonly grpcPort: number }, userId: string, deviceId: string): Promise<TestDevice>;
  online(at: TestDevice, ...userIds: string[]): Promise<string[]>;
  /** Asks until the picture is as expected; bounded by the timeout of the test. */
  untilOnline(at: TestDevice, userIds: readonly string[], expected: readonly string[]): Promise<void>;
  notify(userId: string, deviceId: string): Promise<void>;
  /** Ends what a test has begun. */
  endTest(): Promise<void>;
}

export async function startFixture(): Promise<Fixture> {
  const forAll: Closing[] = [];
  const perTest: Closing[] = [];
  const [redis, nats] = await Promise.all([ensureRedis({ own: true }), ensureNats({ own: true })]);
  const issuer: Issuer = await startIssuer({ environment: 'development' });
  const environment: Record<string, string> = {
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_REDIS_URL: redis.url,
    KEYTRAIL_NATS_URL: nats.url,
    KEYTRAIL_JWKS_URL: issuer.jwksUrl,
    KEYTRAIL_TOKEN_ISSUER: issuer.issuer,
    KEYTRAIL_TOKEN_AUDIENCE: issuer.audience,
    KEYTRAIL_SERVICE_CREDENTIAL: 'a-development-credential-of-32-characters',
    KEYTRAIL_PEER_CONVERSATION: '127.0.0.1:1',
    KEYTRAIL_PEER_IDENTITY_KEYS: '127.0.0.1:1',
    KEYTRAIL_PEER_SESSION: '127.0.0.1:1',
    KEYTRAIL_GATEWAY_LEASE_MS: '900',
    KEYTRAIL_GATEWAY_RENEW_MS: '200',
    KEYTRAIL_HEARTBEAT_INTERVAL_MS: '60000',
    KEYTRAIL_LOG_LEVEL: 'silent',
  };
  const config = readConfig(environment);
  const telemetry = startTelemetry({ service: 'identity-keys', config });
  const peers: Peers = {
    asked: { prekeyStatus: 0, keysWaiting: [], conversationsWaiting: [] },
    beforeKeys: () => {},
    beforeConversations: () => {},
  };
  const serve = async (
    service: 'identity-keys' | 'session' | 'conversation',
    variable: string,
    services: Parameters<typeof startServer>[0]['services'],
    rpcs: Parameters<typeof startServer>[0]['rpcs'],
  ) => {
    const server = await startServer({
      service,
      services,
      rpcs,
      config: { ...config, grpcPort: 0, webPort: 0 },
      authenticator: createAuthenticator(config),
      telemetry,
    });
    forAll.push(() => server.stop());
    environment[variable] = `127.0.0.1:${server.grpcPort}`;
  };
  const allow = ['service:presence'] as const;
  await serve(
    'identity-keys',
    'KEYTRAIL_PEER_IDENTITY_KEYS',
    [IdentityKeysService],
    [
      unary(IdentityKeysService.method.getPrekeyStatus, {
        allow,
        handle() {
          peers.asked.prekeyStatus += 1;
          return { status: {} };
        },
      }),
      unary(IdentityKeysService.method.listRevokedDevices, { allow, handle: () => ({}) }),
    ],
  );
  await serve(
    'session',
    'KEYTRAIL_PEER_SESSION',
    [SessionService],
    [
      unary(SessionService.method.getKeysWaiting, {
        allow,
        async handle(request) {
          peers.asked.keysWaiting.push(request);
          await peers.beforeKeys();
          return { keyOffers: 2, openKeyRequests: 3, changed: request.cursor !== 'newest' };
        },
      }),
    ],
  );
  await serve(
    'conversation',
    'KEYTRAIL_PEER_CONVERSATION',
    [ConversationService],
    [
      unary(ConversationService.method.listSharedUsers, {
        allow,
        handle: ({ otherUserIds }) => ({ userIds: otherUserIds }),
      }),
      unary(ConversationService.method.getConversationsWaiting, {
        allow,
        async handle(request) {
          peers.asked.conversationsWaiting.push(request);
          await peers.beforeConversations();
          return {
            rotationsDue: ['c0ffee00-0000-4000-8000-000000000000'],
            moreRotationsDue: true,
            changed: request.cursor !== 'newest',
          };
        },
      }),
    ],
  );
  const bus = await connectEvents({ config, log: telemetry.log });
  await bus.ensure();
  const admin = new Redis(redis.url);
  admin.on('error', () => {});

  const online: Fixture['online'] = async (at, ...userIds) =>
    (await at.presence.listOnline({ userIds })).devices
      .map(({ device }) => `${device?.userId}/${device?.deviceId}`)
      .sort();

  return {
    redis,
    nats,
    admin,
    bus,
    peers,
    environment,
    online,
    token: (userId, deviceId) => issuer.token({ userId, deviceId }),
    operatorToken: () => issuer.token({ userId: 'ops', deviceId: 'console', scopes: [operatorScope] }),
    async gateway(changes = {}) {
      const running = await startPresence(readConfig({ ...environment, ...changes }));
      let stopped: Promise<void> | undefined;
      const stop = () => {
        stopped ??= running.stop();
        return stopped;
      };
      perTest.push(stop);
      return { ...running, stop };
    },
    async device(at, userId, deviceId) {
      const token = await issuer.token({ userId, deviceId });
      const transport = createGrpcTransport({
        target: `127.0.0.1:${at.grpcPort}`,
        authorization: () => `Bearer ${token}`,
      });
      perTest.push(() => transport.close());
      const presence = createClient(PresenceService, transport);
      return {
        presence,
        async attach(attachCounter, cursors = {}) {
          const leaving = new AbortController();
          perTest.push(() => leaving.abort());
          const answers = presence.attach({ attachCounter, ...cursors }, { signal: leaving.signal });
          const stream = answers[Symbol.asyncIterator]();
          const { message } = (await stream.next()).value ?? {};
          if (message?.case !== 'greeting') throw new Error(`the first message is ${message?.case}`);
          return {
            greeting: message.value,
            connectionId: message.value.connectionId,
            stream,
            leave: () => leaving.abort(),
            async ended() {
              try {
                while ((await stream.next()).done !== true);
                return undefined;
              } catch (error) {
                return readRefusal(error);
              }
            },
          };
        },
      };
    },
    async untilOnline(at, userIds, expected) {
      while (JSON.stringify(await online(at, ...userIds)) !== JSON.stringify(expected))
        await new Promise((resolve) => setTimeout(resolve, 20));
    },
    async notify(userId, deviceId) {
      await publishHint(bus, notificationRequested.session, {
        devices: [{ userId, deviceId }],
        notification: { kind: NotificationKind.KEY_OFFERED },
      });
    },
    async endTest() {
      for (const close of perTest.splice(0).reverse()) await close();
      peers.asked = { prekeyStatus: 0, keysWaiting: [], conversationsWaiting: [] };
      peers.beforeKeys = () => {};
      peers.beforeConversations = () => {};
    },
    async [Symbol.asyncDispose]() {
      admin.disconnect();
      await bus.close();
      for (const close of forAll.reverse()) await close();
      await issuer.stop();
      await telemetry.shutdown();
      await Promise.all([redis.stop(), nats.stop()]);
    },
  };
}
