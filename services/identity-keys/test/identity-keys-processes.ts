import { randomBytes, randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from '@connectrpc/connect';
import { startIssuer } from '@keytrail/auth/issuer';
import { IdentityKeysService } from '@keytrail/contracts';
import { ensureNats, ensurePostgres, ensureRedis, type ProcessHandle, startProcess } from '@keytrail/local';
import { createGrpcTransport } from '@keytrail/rpc';
import { createServiceDatabase, type Database, migrateDatabase, openDatabase } from '@keytrail/storage';
import { migrationsFolder } from '../src/service.ts';
import { type DatabaseProxy, startDatabaseProxy } from './database-proxy.ts';
import type { IdentityKeysClient } from './identity-keys-fixture.ts';

/** Two replicas as processes of their own, to be killed, each behind a proxy of its own to their one database. */
export interface IdentityKeysProcesses {
  readonly db: Database;
  readonly replicas: readonly { readonly process: ProcessHandle; readonly database: DatabaseProxy }[];
  /** A client that does not try again by itself. */
  asDevice(
    device: { readonly userId: string; readonly deviceId: string },
    replica: number,
  ): Promise<IdentityKeysClient>;
  /** Starts a replica again that was killed. */
  revive(replica: number): Promise<void>;
  stop(): Promise<void>;
}

export async function startIdentityKeysProcesses(): Promise<IdentityKeysProcesses> {
  const closing: (() => Promise<unknown> | unknown)[] = [];
  const [postgres, nats, redis] = await Promise.all([
    ensurePostgres(),
    ensureNats({ own: true }),
    ensureRedis({ own: true }),
  ]);
  closing.push(() => Promise.all([postgres.stop(), nats.stop(), redis.stop()]));
  const logs = mkdtempSync(join(tmpdir(), 'keytrail-identity-keys-'));
  closing.push(() => rmSync(logs, { recursive: true, force: true }));
  const issuer = await startIssuer({ environment: 'development' });
  closing.push(() => issuer.stop());
  const name = `identity_keys_${randomUUID().replaceAll('-', '')}`;
  const password = randomBytes(9).toString('hex');
  const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password });
  await migrateDatabase({ url, migrations: migrationsFolder });
  const db = openDatabase({ url, service: 'test', connections: 20, statementTimeoutMs: 20_000 });
  closing.push(() => db.close());

  const replicas = await Promise.all(
    [0, 1].map(async (number) => {
      const database = await startDatabaseProxy(url);
      closing.push(() => database.stop());
      const process = await startProcess({
        name: 'identity-keys',
        args: ['services/identity-keys/src/main.ts'],
        logFile: join(logs, `replica-${number}.log`),
        env: {
          KEYTRAIL_ENVIRONMENT: 'development',
          KEYTRAIL_LOG_LEVEL: 'info',
          KEYTRAIL_DATABASE_URL: database.url,
          KEYTRAIL_NATS_URL: nats.url,
          KEYTRAIL_REDIS_URL: redis.url,
          KEYTRAIL_JWKS_URL: issuer.jwksUrl,
          KEYTRAIL_TOKEN_ISSUER: issuer.issuer,
          KEYTRAIL_SERVICE_CREDENTIAL: 'shared-by-these-services-in-development',
          KEYTRAIL_CALLER_REQUESTS_PER_SECOND: '0',
          KEYTRAIL_CLAIMS_PER_CALLER: '0',
          KEYTRAIL_CLAIMS_PER_TARGET: '0',
          KEYTRAIL_CLAIMS_PER_PAIR: '0',
          // Claims of devices that exist ask neither.
          KEYTRAIL_PEER_CONVERSATION: '127.0.0.1:1',
          KEYTRAIL_PEER_SESSION: '127.0.0.1:1',
        },
      });
      closing.push(() => process.stop());
      return { process, database };
    }),
  );

  return {
    db,
    replicas,
    async asDevice(device, replica) {
      const { process } = replicas[replica] as (typeof replicas)[0];
      const { grpcPort } = await process.waitForLine((line) => line.event === 'listening');
      const token = await issuer.token(device);
      const transport = createGrpcTransport({
        target: `127.0.0.1:${grpcPort}`,
        authorization: () => `Bearer ${token}`,
        retry: { retries: 0 },
      });
      closing.push(() => transport.close());
      return createClient(IdentityKeysService, transport);
    },
    async revive(replica) {
      replicas[replica]?.database.letThrough();
      await replicas[replica]?.process.restart();
    },
    async stop() {
      for (let close = closing.pop(); close; close = closing.pop()) await close();
    },
  };
}
