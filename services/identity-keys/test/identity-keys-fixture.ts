import { randomBytes, randomUUID } from 'node:crypto';
import { type Client, createClient, type Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { createServiceIdentity } from '@keytrail/auth';
import { type Issuer, startIssuer } from '@keytrail/auth/issuer';
import { IdentityKeysService, type RegisterDeviceResponse, RevokedBy } from '@keytrail/contracts';
import { ensureNats, ensurePostgres } from '@keytrail/local';
import { createGrpcTransport } from '@keytrail/rpc';
import { createServiceDatabase, type Database, migrateDatabase, openDatabase } from '@keytrail/storage';
import { readConfig } from '../src/config.ts';
import { createIdentityKeys, migrationsFolder } from '../src/service.ts';
import { lockUser } from '../src/store/devices.ts';
import { devicesOfUser, revokeDevices } from '../src/store/revocations.ts';
import { makeDevice, type TestDevice, type TestDeviceOptions } from './device-keys.ts';
import { type StandIns, startStandIns } from './stand-ins.ts';

export type IdentityKeysClient = Client<typeof IdentityKeysService>;
export type Wire = 'grpc' | 'web';
export const wires: readonly Wire[] = ['grpc', 'web'];

const serviceCredential = 'shared-by-these-services-in-development';

/** The service as it is, in as many replicas as wanted, over its own PostgreSQL and NATS. */
export interface IdentityKeysUnderTest {
  readonly natsUrl: string;
  /** The services that are asked, as small real servers. */
  readonly peers: StandIns;
  /** A connection of the test's own to the database of the service. */
  readonly db: Database;
  /** A client with a device's token. */
  asDevice(
    device: { userId: string; deviceId: string },
    options?: { wire?: Wire; replica?: number },
  ): Promise<IdentityKeysClient>;
  asService(service: 'session' | 'conversation', options?: { replica?: number }): IdentityKeysClient;
  /** Registers a new device with its own token. */
  register(options: TestDeviceOptions): Promise<{ device: TestDevice; response: RegisterDeviceResponse }>;
  /** Revokes one device of the user, or all that are left. */
  revoke(userId: string, deviceId?: string): Promise<void>;
  stop(): Promise<void>;
}

export async function startIdentityKeys({
  replicas = 1,
  settings = {},
}: {
  replicas?: number;
  settings?: Record<string, string>;
} = {}): Promise<IdentityKeysUnderTest> {
  const closing: (() => Promise<unknown> | unknown)[] = [];
  const [postgres, nats] = await Promise.all([ensurePostgres(), ensureNats({ own: true })]);
  closing.push(() => Promise.all([postgres.stop(), nats.stop()]));
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
  };
  const peers = await startStandIns(environment);
  closing.push(() => peers.stop());
  const config = readConfig({ ...environment, ...peers.targets, ...settings });
  const ports: { grpcPort: number; webPort: number }[] = [];
  for (let i = 0; i < replicas; i++) {
    const replica = createIdentityKeys(config);
    closing.push(() => replica.stop());
    ports.push(await replica.start());
  }

  function transport(authorization: string, wire: Wire, replica: number): Transport {
    const { grpcPort, webPort } = ports[replica] ?? { grpcPort: 0, webPort: 0 };
    if (wire === 'grpc') {
      const grpc = createGrpcTransport({ target: `127.0.0.1:${grpcPort}`, authorization: () => authorization });
      closing.push(() => grpc.close());
      return grpc;
    }
    return createConnectTransport({
      baseUrl: `http://127.0.0.1:${webPort}`,
      httpVersion: '1.1',
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
    { wire = 'grpc', replica = 0 }: { wire?: Wire; replica?: number } = {},
  ) {
    const token = await issuer.token({ userId, deviceId });
    return createClient(IdentityKeysService, transport(`Bearer ${token}`, wire, replica));
  }

  return {
    natsUrl: nats.url,
    peers,
    db,
    asDevice,
    asService(service, { replica = 0 } = {}) {
      const identity = createServiceIdentity({ serviceCredential }, service);
      return createClient(IdentityKeysService, transport(identity.header(), 'grpc', replica));
    },
    async register(options) {
      const { device, registration } = makeDevice(options);
      const response = await (await asDevice(device)).registerDevice(registration);
      return { device, response };
    },
    async revoke(userId, deviceId) {
      await db.transaction(async (tx) => {
        const user = await lockUser(tx, userId);
        if (!user) throw new Error('no such user');
        const devices = await devicesOfUser(tx, userId);
        const good = devices.filter(
          ({ revoked_at, device_id }) => !revoked_at && (deviceId ?? device_id) === device_id,
        );
        await revokeDevices(tx, userId, good, { rootKey: user.root_key, revoker: { by: RevokedBy.OPERATOR } });
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
