import { randomBytes } from 'node:crypto';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { ServiceName } from '@keytrail/auth';
import { type Issuer, startIssuer } from '@keytrail/auth/issuer';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import { startTraceStore, type TraceStore } from '@keytrail/traces';
import { checkoutFolder } from './checkout.ts';
import { findFreePort } from './free-port.ts';
import { type ProcessHandle, startProcess } from './processes.ts';
import { ensureNats } from './servers/nats.ts';
import { ensurePostgres } from './servers/postgres.ts';
import { ensureRedis } from './servers/redis.ts';
import type { ServerHandle } from './servers/server.ts';

/** The services in the order in which they are started. */
export const serviceNames = [
  'identity-keys',
  'session',
  'conversation',
  'presence',
] as const satisfies readonly ServiceName[];

/** Those with a database of their own. */
export const servicesWithDatabase = ['identity-keys', 'session', 'conversation'] as const;

export interface ConstellationOptions {
  /** Folder for logs; made when missing. Default `.local/<name>`. */
  readonly folder?: string;
  /** Names the folder and the databases. Default `dev`. */
  readonly name?: string;
  /** Processes per service, default 1 each. */
  readonly replicas?: Partial<Record<ServiceName, number>>;
  /** Laid over the environment of every service, for example shorter leases. */
  readonly env?: Readonly<Record<string, string>>;
  /** Laid over the environment of one service. */
  readonly serviceEnv?: Partial<Record<ServiceName, Readonly<Record<string, string>>>>;
  /** Servers of its own even when the environment names some: for tests that stop or kill them. */
  readonly own?: boolean;
  /** PostgreSQL with fsync. */
  readonly fsync?: boolean;
  /** Folder of the release whose migrations the databases get; default this checkout. */
  readonly migrationsOf?: string;
  /** Folders of the releases that services are started from; default this checkout. `replica.process.restart({ cwd })` changes it for one. */
  readonly releases?: Partial<Record<ServiceName, string>>;
  /** Head sampling of traces, default 1. */
  readonly traceRatio?: number;
  readonly progress?: (line: string) => void;
}

/** One running process of a service. */
export interface ServiceReplica {
  readonly service: ServiceName;
  /** `127.0.0.1:<port>`, gRPC. */
  readonly grpcTarget: string;
  /** `http://127.0.0.1:<port>`, Connect, gRPC-Web and JSON. */
  readonly webUrl: string;
  readonly process: ProcessHandle;
}

/** Everything that runs Keytrail on one machine: servers, issuer, trace store, and the four services. */
export interface Constellation extends AsyncDisposable {
  readonly postgres: ServerHandle;
  readonly redis: ServerHandle;
  readonly nats: ServerHandle;
  readonly issuer: Issuer;
  readonly traces: TraceStore;
  readonly replicas: readonly ServiceReplica[];
  /** Credential that the services share: for tests that call as a service. */
  readonly serviceCredential: string;
  /** Databases by service, with their owners' credentials. */
  readonly databaseUrls: Readonly<Record<(typeof servicesWithDatabase)[number], string>>;
  /** gRPC target of a service over all its replicas. */
  grpcTarget(service: ServiceName): string;
  /** Web base URL of the first replica. */
  webUrl(service: ServiceName): string;
  /** The replicas of one service. */
  of(service: ServiceName): readonly ServiceReplica[];
  stop(): Promise<void>;
}

const peerVariables: Record<ServiceName, string> = {
  'identity-keys': 'KEYTRAIL_PEER_IDENTITY_KEYS',
  session: 'KEYTRAIL_PEER_SESSION',
  conversation: 'KEYTRAIL_PEER_CONVERSATION',
  presence: 'KEYTRAIL_PEER_PRESENCE',
};

export const developmentIssuer = 'https://issuer.keytrail.test';
export const developmentAudience = 'keytrail';

/** Boots the whole constellation; what was started is stopped again when a part of it fails. */
export async function startConstellation(options: ConstellationOptions = {}): Promise<Constellation> {
  const name = options.name ?? 'dev';
  const folder = options.folder ?? join(checkoutFolder, '.local', name);
  const progress = options.progress ?? (() => {});
  mkdirSync(folder, { recursive: true });
  const started: { stop(): Promise<unknown> }[] = [];
  const stop = async () => {
    // Services first and all at once, then what they stand on.
    const services = started.splice(0).reverse();
    const processes = services.filter((part) => 'exited' in part);
    await Promise.allSettled(processes.map((part) => part.stop()));
    for (const part of services.filter((other) => !('exited' in other))) await part.stop();
  };
  const keep = <T extends { stop(): Promise<unknown> }>(part: T): T => {
    started.push(part);
    return part;
  };

  try {
    const server = { own: options.own ?? false };
    const [postgres, redis, nats] = await settleAll([
      ensurePostgres({ ...server, fsync: options.fsync ?? false }).then(keep),
      ensureRedis(server).then(keep),
      ensureNats(server).then(keep),
    ]);
    for (const each of [postgres, redis, nats]) progress(`${each.kind} ${each.version} (${each.origin})`);

    const issuer = keep(
      await startIssuer({
        port: 0,
        issuer: developmentIssuer,
        audience: developmentAudience,
        environment: 'development',
      }),
    );
    const traces = keep(await startTraceStore({ port: 0 }));
    const suffix = `${name}_${randomBytes(3).toString('hex')}`.replaceAll('-', '_');
    const databases = await settleAll(
      servicesWithDatabase.map(async (service) => {
        const database = `keytrail_${service}_${suffix}`.replaceAll('-', '_');
        const url = await createServiceDatabase({
          adminUrl: postgres.url,
          name: database,
          role: database,
          password: randomBytes(16).toString('hex'),
        });
        const release = options.migrationsOf ?? checkoutFolder;
        await migrateDatabase({ url, migrations: join(release, 'services', service, 'prisma', 'migrations') });
        return [service, url] as const;
      }),
    );
    const databaseUrls = Object.fromEntries(databases) as Constellation['databaseUrls'];
    progress('databases made and migrated');

    const serviceCredential = randomBytes(24).toString('hex');
    const pseudonymKey = randomBytes(32).toString('hex');
    const placed: { service: ServiceName; grpcPort: number; webPort: number }[] = [];
    for (const service of serviceNames) {
      for (let replica = 0; replica < (options.replicas?.[service] ?? 1); replica += 1) {
        placed.push({ service, grpcPort: await findFreePort(), webPort: await findFreePort() });
      }
    }
    const grpcTarget = (service: ServiceName) => {
      const ports = placed.filter((each) => each.service === service).map((each) => each.grpcPort);
      return ports.length === 1
        ? `127.0.0.1:${ports[0]}`
        : `ipv4:${ports.map((port) => `127.0.0.1:${port}`).join(',')}`;
    };
    const environment: Record<string, string> = {
      KEYTRAIL_ENVIRONMENT: 'development',
      KEYTRAIL_NATS_URL: nats.url,
      KEYTRAIL_REDIS_URL: redis.url,
      KEYTRAIL_JWKS_URL: issuer.jwksUrl,
      KEYTRAIL_TOKEN_ISSUER: developmentIssuer,
      KEYTRAIL_TOKEN_AUDIENCE: developmentAudience,
      KEYTRAIL_SERVICE_CREDENTIAL: serviceCredential,
      KEYTRAIL_PSEUDONYM_KEY: pseudonymKey,
      KEYTRAIL_OTLP_URL: traces.url,
      KEYTRAIL_TRACE_RATIO: String(options.traceRatio ?? 1),
      KEYTRAIL_ALLOWED_ORIGINS: '*',
      KEYTRAIL_LOG_LEVEL: 'info',
      KEYTRAIL_SUPERVISOR: 'launcher',
      ...Object.fromEntries(serviceNames.map((service) => [peerVariables[service], grpcTarget(service)])),
      ...options.env,
    };
    const replicas = await settleAll(
      placed.map(async ({ service, grpcPort, webPort }, index): Promise<ServiceReplica> => {
        const databaseUrl = databaseUrls[service as keyof typeof databaseUrls];
        const logFile = join(folder, `${service}-${index}.log`);
        rmSync(logFile, { force: true });
        const process = keep(
          await startProcess({
            name: service,
            args: [`services/${service}/src/main.ts`],
            cwd: options.releases?.[service] ?? checkoutFolder,
            logFile,
            env: {
              ...environment,
              KEYTRAIL_GRPC_PORT: String(grpcPort),
              KEYTRAIL_WEB_PORT: String(webPort),
              ...(databaseUrl ? { KEYTRAIL_DATABASE_URL: databaseUrl } : {}),
              ...options.serviceEnv?.[service],
            },
          }),
        );
        return { service, grpcTarget: `127.0.0.1:${grpcPort}`, webUrl: `http://127.0.0.1:${webPort}`, process };
      }),
    );
    progress(`services listen: ${replicas.map((each) => each.service).join(', ')}`);
    const of = (service: ServiceName) => replicas.filter((replica) => replica.service === service);
    return {
      postgres,
      redis,
      nats,
      issuer,
      traces,
      replicas,
      serviceCredential,
      databaseUrls,
      grpcTarget,
      webUrl: (service) => of(service)[0]?.webUrl ?? '',
      of,
      stop,
      [Symbol.asyncDispose]: stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Like Promise.all, but waits for all to settle first, so that whatever did start is known and can be stopped. */
async function settleAll<T extends readonly unknown[] | []>(
  promises: T,
): Promise<{ -readonly [K in keyof T]: Awaited<T[K]> }> {
  await Promise.allSettled(promises);
  return Promise.all(promises);
}
