import { randomUUID } from 'node:crypto';
import { type DescMessage, type DescMethodUnary, fromBinary, type MessageShape } from '@bufbuild/protobuf';
import { type Client, createClient, type Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-web';
import { createAuthenticator, createServiceIdentity, operatorScope, type ServiceName } from '@keytrail/auth';
import { type Issuer, startIssuer } from '@keytrail/auth/issuer';
import { KeyRequestRole, SessionOperatorService, SessionService } from '@keytrail/contracts';
import { connectEvents, deviceAttached, type EventBus, type EventType, publishHint } from '@keytrail/events';
import { ensureNats, ensurePostgres, type PostgresOptions, type ServerHandle } from '@keytrail/local';
import { createGrpcTransport, type GrpcTransport, readRefusal } from '@keytrail/rpc';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import { startTelemetry } from '@keytrail/telemetry';
import pg from 'pg';
import {
  createSession,
  migrationsFolder,
  readConfig,
  type SessionConfig,
  type SessionServiceProcess,
} from '../src/service.ts';
import type { MadeSession, TestDevice } from './people.ts';
import { type StandIns, startStandIns } from './stand-ins.ts';

const credential = 'a-credential-of-thirty-two-characters-or-more';

type SessionClient = Client<typeof SessionService>;

/** session as it runs, on real PostgreSQL and NATS, its peers as stand-ins. */
export interface World {
  readonly peers: StandIns;
  readonly config: SessionConfig;
  readonly service: SessionServiceProcess;
  readonly asConversation: SessionClient;
  readonly asIdentityKeys: SessionClient;
  readonly asPresence: SessionClient;
  readonly operator: Client<typeof SessionOperatorService>;
  /** gRPC target of the service, and a token of an operator for it. */
  readonly target: string;
  operatorToken(): Promise<string>;
  /** What a device says who it is by. */
  bearer(device: { userId: string; deviceId: string }): Promise<string>;
  /** Straight SQL, as a role that owns the tables. */
  readonly sql: pg.Pool;
  readonly bus: EventBus;
  /** What the service logged, from its level (`logLevel`) on. */
  readonly logged: Record<string, unknown>[];
  as(device: { userId: string; deviceId: string }, wire?: 'grpc' | 'web'): SessionClient;
  store(made: MadeSession): Promise<void>;
  /** Resolves with the next event of a type that fits; what came since the world began counts too. */
  event<D extends DescMessage>(
    type: EventType<D>,
    fits: (message: MessageShape<D>) => boolean,
  ): Promise<MessageShape<D>>;
  attached(device: TestDevice): Promise<void>;
  /** Another instance of the service on the same database. */
  another(changes: Partial<SessionConfig>, run?: { consumers?: boolean; sweep?: boolean }): Promise<Instance>;
  stop(): Promise<void>;
}

export interface Instance {
  as(device: { userId: string; deviceId: string }): SessionClient;
  readonly operator: Client<typeof SessionOperatorService>;
  readonly target: string;
  stop(): Promise<void>;
}

export async function startWorld(
  changes: Partial<SessionConfig> = {},
  run?: { consumers?: boolean; sweep?: boolean },
  postgresOptions?: PostgresOptions,
): Promise<World> {
  const [postgres, nats, issuer] = await Promise.all([
    ensurePostgres(postgresOptions),
    ensureNats(),
    startIssuer({ environment: 'development' }),
  ]);
  const name = `session_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
  const databaseUrl = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: 'secret' });
  await migrateDatabase({ url: databaseUrl, migrations: migrationsFolder });
  const config = { ...environmentConfig(databaseUrl, nats, issuer), ...changes };
  const telemetry = startTelemetry({ service: 'session', config });
  const authenticator = createAuthenticator(config);
  const peers = await startStandIns({ config: { ...config, callerRequestsPerSecond: 0 }, authenticator, telemetry });
  const full: SessionConfig = {
    ...config,
    peerConversation: peers.targets.conversation,
    peerIdentityKeys: peers.targets.identityKeys,
    peerPresence: peers.targets.presence,
    ...changes,
  };
  const logged: Record<string, unknown>[] = [];
  const logTo = { write: (line: string) => void logged.push(JSON.parse(line)) };
  const own = startTelemetry({ service: 'session', config: full, logTo });
  const service = createSession(full, { telemetry: own, ...(run && { run }) });
  const ports = await service.start();
  const bus = await connectEvents({ config: full, log: telemetry.log });
  const heard = listen(bus);
  const transports: { close(): void }[] = [];

  function grpc(port: number, authorization: () => string | Promise<string>): GrpcTransport {
    const transport = createGrpcTransport({ target: `127.0.0.1:${port}`, authorization });
    transports.push(transport);
    return transport;
  }
  function transport(wire: 'grpc' | 'web', authorization: () => string | Promise<string>): Transport {
    if (wire === 'grpc') return grpc(ports.grpcPort, authorization);
    return createConnectTransport({
      baseUrl: `http://127.0.0.1:${ports.webPort}`,
      useHttpGet: true,
      interceptors: [
        (next) => async (request) => {
          request.header.set('authorization', await authorization());
          return next(request);
        },
      ],
    });
  }
  const bearer = (device: { userId: string; deviceId: string }) => async () =>
    `Bearer ${await issuer.token({ userId: device.userId, deviceId: device.deviceId })}`;
  const operatorToken = () => issuer.token({ userId: 'ops', deviceId: 'console', scopes: [operatorScope] });
  const asService = (name: ServiceName) => {
    const identity = createServiceIdentity(full, name);
    return createClient(
      SessionService,
      transport('grpc', () => identity.header()),
    );
  };
  const asConversation = asService('conversation');
  const sql = new pg.Pool({ connectionString: databaseUrl, max: 2 });

  return {
    peers,
    config: full,
    service,
    asConversation,
    asIdentityKeys: asService('identity-keys'),
    asPresence: asService('presence'),
    operator: createClient(
      SessionOperatorService,
      transport('grpc', async () => `Bearer ${await operatorToken()}`),
    ),
    target: `127.0.0.1:${ports.grpcPort}`,
    operatorToken,
    bearer: (device) => bearer(device)(),
    sql,
    bus,
    logged,
    as: (device, wire = 'grpc') => createClient(SessionService, transport(wire, bearer(device))),
    async store(made) {
      await asConversation.storeSession(made.request);
    },
    event: heard.event,
    attached: (device) =>
      publishHint(bus, deviceAttached, { device: { userId: device.userId, deviceId: device.deviceId } }),
    async another(differing, otherRun) {
      const instance = createSession({ ...full, ...differing }, { ...(otherRun && { run: otherRun }) });
      const { grpcPort } = await instance.start();
      return {
        as: (device) => createClient(SessionService, grpc(grpcPort, bearer(device))),
        operator: createClient(
          SessionOperatorService,
          grpc(grpcPort, async () => `Bearer ${await operatorToken()}`),
        ),
        target: `127.0.0.1:${grpcPort}`,
        stop: () => instance.stop(),
      };
    },
    async stop() {
      for (const open of transports) open.close();
      heard.stop();
      await service.stop();
      await peers.stop();
      await bus.close();
      await sql.end();
      await telemetry.shutdown();
      await issuer.stop();
      await Promise.all([postgres.stop(), nats.stop()]);
    },
  };
}

function environmentConfig(databaseUrl: string, nats: ServerHandle, issuer: Issuer): SessionConfig {
  return readConfig({
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_LOG_LEVEL: 'silent',
    KEYTRAIL_DATABASE_URL: databaseUrl,
    KEYTRAIL_NATS_URL: nats.url,
    KEYTRAIL_NATS_STORAGE: 'memory',
    KEYTRAIL_JWKS_URL: issuer.jwksUrl,
    KEYTRAIL_TOKEN_ISSUER: issuer.issuer,
    KEYTRAIL_TOKEN_AUDIENCE: issuer.audience,
    KEYTRAIL_SERVICE_CREDENTIAL: credential,
    KEYTRAIL_PEER_CONVERSATION: 'unused',
    KEYTRAIL_PEER_IDENTITY_KEYS: 'unused',
    KEYTRAIL_PEER_PRESENCE: 'unused',
    KEYTRAIL_DRAIN_MS: '500',
    KEYTRAIL_CALLER_REQUESTS_PER_SECOND: '0',
    KEYTRAIL_KEY_REQUEST_HEDGE_MS: '0',
  });
}

/** Everything that session publishes, kept so that a test can wait for what has happened already. */
function listen(bus: EventBus) {
  const messages: { subject: string; bytes: Uint8Array }[] = [];
  const waiting = new Set<() => void>();
  const subscription = bus.connection.subscribe('keytrail.session.v1.>', {
    callback(error, message) {
      if (error) return;
      messages.push({ subject: message.subject, bytes: message.data });
      for (const look of waiting) look();
    },
  });
  function event<D extends DescMessage>(type: EventType<D>, fits: (message: MessageShape<D>) => boolean) {
    return new Promise<MessageShape<D>>((resolve) => {
      const look = () => {
        for (const { subject, bytes } of messages) {
          if (subject !== type.subject) continue;
          const message = fromBinary(type.message, bytes);
          if (!fits(message)) continue;
          waiting.delete(look);
          resolve(message);
          return;
        }
      };
      waiting.add(look);
      look();
    });
  }
  return { event, stop: () => subscription.unsubscribe() };
}

/** Calls a method by its descriptor, with whatever input. */
export function call(client: SessionClient, method: DescMethodUnary, input: object): Promise<unknown> {
  const methods = client as unknown as Record<string, (input: object) => Promise<unknown>>;
  return methods[method.localName]?.(input) ?? Promise.reject(new Error(`no method ${method.name}`));
}

/** What a call was refused with. */
export async function refusalOf(pending: Promise<unknown>) {
  try {
    await pending;
  } catch (error) {
    return readRefusal(error);
  }
  throw new Error('it was not refused');
}

export async function offersTo(client: SessionClient) {
  return (await client.listKeyRequests({ role: KeyRequestRole.HOLDER })).keyRequests;
}
