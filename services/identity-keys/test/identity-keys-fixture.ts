import { randomBytes, randomUUID } from 'node:crypto';
import { type Client, createClient, type Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { createServiceIdentity, operatorScope } from '@keytrail/auth';
import { type Issuer, startIssuer } from '@keytrail/auth/issuer';
import { IdentityKeysOperatorService, IdentityKeysService, type RegisterDeviceResponse } from '@keytrail/contracts';
import type { KeyPair } from '@keytrail/crypto';
import { ensureNats, ensurePostgres, ensureRedis, type ServerHandle } from '@keytrail/local';
import { createGrpcTransport } from '@keytrail/rpc';
import { createServiceDatabase, type Database, migrateDatabase, openDatabase } from '@keytrail/storage';
import { Redis } from 'ioredis';
import { readConfig } from '../src/config.ts';
import { createIdentityKeys, migrationsFolder } from '../src/service.ts';
import { makeDevice, type TestDevice, type TestDeviceOptions } from './device-keys.ts';
import { type StandIns, startStandIns } from './stand-ins.ts';

export type IdentityKeysClient = Client<typeof IdentityKeysService>;
export type Wire = 'grpc' | 'web';
export const wires: readonly Wire[] = ['grpc', 'web'];

export const serviceCredential = 'shared-by-these-services-in-development';

/** The service as it is, in as many replicas as wanted, over its own PostgreSQL and NATS. */
export interface IdentityKeysUnderTest {
  readonly natsUrl: string;
  /** Its own where the test wanted that: then it can be stopped, and its files set back. */
  readonly postgres: ServerHandle;
  /** Its own. */
  readonly nats: ServerHandle;
  /** Of the database of the service, with the rights of its server's administrator. */
  readonly adminUrl: string;
  /** The name of the database, and of its role. */
  readonly databaseName: string;
  /** Starts one more replica, as after a deployment; its number. */
  addReplica(): Promise<number>;
  stopReplica(replica: number): Promise<void>;
  /** Its own, for tests that stop it. */
  readonly redis: ServerHandle;
  /** How many keys Redis has. */
  redisKeys(): Promise<number>;
  /** The services that are asked, as small real servers. */
  readonly peers: StandIns;
  /** A connection of the test's own to the database of the service. */
  readonly db: Database;
  /** A client with a device's token. */
  asDevice(
    device: { userId: string; deviceId: string },
    options?: { wire?: Wire; replica?: number; json?: boolean },
  ): Promise<IdentityKeysClient>;
  /** The same, and the device is registered if the fixture has not done so before. */
  asRegistered: IdentityKeysUnderTest['asDevice'];
  asOperator(options?: { wire?: Wire; replica?: number }): Promise<IdentityKeysClient>;
  /** The operators' view, as an operator, a device, a service, or with no token at all. */
  view(
    as: 'operator' | { userId: string; deviceId: string } | { service: 'session' | 'conversation' | 'presence' },
    options?: { wire?: Wire },
  ): Promise<Client<typeof IdentityKeysOperatorService>>;
  asService(service: 'session' | 'conversation' | 'presence', options?: { replica?: number }): IdentityKeysClient;
  /** gRPC target of the first replica, and a token of an operator for it. */
  target(): string;
  operatorToken(): Promise<string>;
  /** Registers a new device with its own token. */
  register(options: TestDeviceOptions): Promise<{ device: TestDevice; response: RegisterDeviceResponse }>;
  /** Has an operator revoke one device of the user, or all that are left. */
  revoke(userId: string, deviceId?: string): Promise<void>;
  stop(): Promise<void>;
}

export async function startIdentityKeys({
  replicas = 1,
  ownPostgres = false,
  settings = {},
}: {
  replicas?: number;
  ownPostgres?: boolean;
  settings?: Record<string, string>;
} = {}): Promise<IdentityKeysUnderTest> {
  const closing: (() => Promise<unknown> | unknown)[] = [];
  const [postgres, nats, redis] = await Promise.all([
    ensurePostgres({ own: ownPostgres }),
    ensureNats({ own: true }),
    ensureRedis({ own: true }),
  ]);
  closing.push(() => Promise.all([postgres.stop(), nats.stop(), redis.stop()]));
  const issuer: Issuer = await startIssuer({ environment: 'development' });
  closing.push(() => issuer.stop());
  const name = `identity_keys_${randomUUID().replaceAll('-', '')}`;
  const url = await createServiceDatabase({
    adminUrl: postgres.url,
    name,
    role: name,
    password: randomBytes(9).toString('hex'),
  });
  await migrateDatabase({ url, migrations: migrationsFolder });
  const db = openDatabase({ url, service: 'test', connections: 50, statementTimeoutMs: 20_000 });
  closing.push(() => db.close());
  const environment = {
    KEYTRAIL_ENVIRONMENT: 'development',
    KEYTRAIL_LOG_LEVEL: 'warn',
    KEYTRAIL_DATABASE_URL: url,
    KEYTRAIL_NATS_URL: nats.url,
    KEYTRAIL_JWKS_URL: issuer.jwksUrl,
    KEYTRAIL_TOKEN_ISSUER: issuer.issuer,
    KEYTRAIL_SERVICE_CREDENTIAL: serviceCredential,
    KEYTRAIL_CALLER_REQUESTS_PER_SECOND: '0',
    // Tests of the watch over prekeys do its rounds themselves.
    KEYTRAIL_PREKEY_WATCH_INTERVAL_MS: '86400000',
    KEYTRAIL_REDIS_URL: redis.url,
    // Tests of limits set their own.
    KEYTRAIL_CLAIMS_PER_CALLER: '0',
    KEYTRAIL_CLAIMS_PER_TARGET: '0',
    KEYTRAIL_CLAIMS_PER_PAIR: '0',
  };
  const peers = await startStandIns(environment);
  closing.push(() => peers.stop());
  const config = readConfig({ ...environment, ...peers.targets, ...settings });
  const ports: { grpcPort: number; webPort: number }[] = [];
  const running: { stop(): Promise<void> }[] = [];
  async function addReplica(): Promise<number> {
    const replica = createIdentityKeys(config);
    closing.push(() => replica.stop());
    running.push(replica);
    return ports.push(await replica.start()) - 1;
  }
  for (let i = 0; i < replicas; i++) await addReplica();

  function transport(authorization: string, wire: Wire, replica: number, json = false): Transport {
    const { grpcPort, webPort } = ports[replica] ?? { grpcPort: 0, webPort: 0 };
    if (wire === 'grpc') {
      const grpc = createGrpcTransport({ target: `127.0.0.1:${grpcPort}`, authorization: () => authorization });
      closing.push(() => grpc.close());
      return grpc;
    }
    return createConnectTransport({
      baseUrl: `http://127.0.0.1:${webPort}`,
      httpVersion: '1.1',
      useBinaryFormat: !json,
      interceptors: [
        (next) => (request) => {
          request.header.set('authorization', authorization);
          return next(request);
        },
      ],
    });
  }

  async function asDevice(
    { userId, deviceId }: { userId: string; deviceId: string },
    { wire = 'grpc', replica = 0, json = false }: { wire?: Wire; replica?: number; json?: boolean } = {},
  ) {
    const token = await issuer.token({ userId, deviceId });
    return createClient(IdentityKeysService, transport(`Bearer ${token}`, wire, replica, json));
  }

  const operatorToken = () => issuer.token({ userId: 'operator', deviceId: 'console', scopes: [operatorScope] });

  async function asOperator({ wire = 'grpc', replica = 0 }: { wire?: Wire; replica?: number } = {}) {
    return createClient(IdentityKeysService, transport(`Bearer ${await operatorToken()}`, wire, replica));
  }

  const rootKeys = new Map<string, KeyPair>();
  async function register(options: TestDeviceOptions) {
    const { device, registration } = makeDevice(options);
    const response = await (await asDevice(device)).registerDevice(registration);
    rootKeys.set(device.userId, device.rootKey);
    return { device, response };
  }

  const registering = new Map<string, Promise<unknown>>();
  function registeredOnce({ userId, deviceId }: { userId: string; deviceId: string }): Promise<unknown> {
    const name = `${userId}/${deviceId}`;
    const known = registering.get(name);
    if (known) return known;
    // One after the other for each user: the first device brings the root key.
    const registered = (registering.get(userId) ?? Promise.resolve()).then(() => {
      const rootKey = rootKeys.get(userId);
      return register({ userId, deviceId, ...(rootKey && { rootKey }) });
    });
    registering.set(name, registered).set(userId, registered);
    return registered;
  }

  async function activeDevices(userId: string): Promise<string[]> {
    const { rows } = await db.pool.query<{ device_id: string }>(
      'SELECT device_id FROM devices WHERE user_id = $1 AND revoked_at IS NULL ORDER BY added_in_version',
      [userId],
    );
    return rows.map(({ device_id }) => device_id);
  }

  const adminUrl = new URL(postgres.url);
  adminUrl.pathname = `/${name}`;

  return {
    natsUrl: nats.url,
    postgres,
    nats,
    adminUrl: adminUrl.href,
    databaseName: name,
    addReplica,
    stopReplica: (replica) => (running[replica] as (typeof running)[0]).stop(),
    redis,
    async redisKeys() {
      const direct = new Redis(redis.url);
      try {
        return await direct.dbsize();
      } finally {
        direct.disconnect();
      }
    },
    peers,
    db,
    asDevice,
    async asRegistered(device, options) {
      await registeredOnce(device);
      return asDevice(device, options);
    },
    asOperator,
    target: () => `127.0.0.1:${ports[0]?.grpcPort}`,
    operatorToken,
    async view(as, { wire = 'grpc' } = {}) {
      const authorization =
        as === 'operator'
          ? `Bearer ${await operatorToken()}`
          : 'service' in as
            ? createServiceIdentity({ serviceCredential }, as.service).header()
            : `Bearer ${await issuer.token(as)}`;
      return createClient(IdentityKeysOperatorService, transport(authorization, wire, 0));
    },
    asService(service, { replica = 0 } = {}) {
      const identity = createServiceIdentity({ serviceCredential }, service);
      return createClient(IdentityKeysService, transport(identity.header(), 'grpc', replica));
    },
    register,
    async revoke(userId, deviceId) {
      const operator = await asOperator();
      const deviceIds = deviceId === undefined ? await activeDevices(userId) : [deviceId];
      for (const each of deviceIds)
        await operator.revokeDevice({
          requestId: randomUUID(),
          device: { userId, deviceId: each },
          auditNote: 'revoked by a test',
        });
    },
    async stop() {
      for (let close = closing.pop(); close; close = closing.pop()) await close();
    },
  };
}

let users = 0;

/** A user id that no other test uses. */
export function newUser(): string {
  users += 1;
  return `user-${users}-${randomUUID().slice(0, 8)}`;
}
