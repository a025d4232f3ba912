import { join } from 'node:path';
import { createAuthenticator, createServiceIdentity } from '@keytrail/auth';
import { ConversationService, IdentityKeysService } from '@keytrail/contracts';
import { connectEvents, startRelay } from '@keytrail/events';
import { connectPeer, startServer } from '@keytrail/rpc';
import { openDatabase, schemaReadiness } from '@keytrail/storage';
import { startTelemetry, type Telemetry } from '@keytrail/telemetry';
import { type IdentityKeysConfig, prekeyLimitsOf } from './config.ts';
import { startForgetting } from './jobs/forget-old-ids.ts';
import { createLowPrekeys } from './low-prekeys.ts';
import { claimPrekeyBundles } from './rpc/claim-prekey-bundles.ts';
import { getDevices } from './rpc/get-devices.ts';
import { getPrekeyStatus } from './rpc/get-prekey-status.ts';
import { listDeviceLog } from './rpc/list-device-log.ts';
import { registerDevice } from './rpc/register-device.ts';
import { replenishPrekeys } from './rpc/replenish-prekeys.ts';
import { createSharing } from './sharing.ts';
import { PrismaClient } from './store/generated/client.ts';

export { type IdentityKeysConfig, identityKeysSettings, readConfig } from './config.ts';

const service = 'identity-keys';

/** Where the migrations of this service are. */
export const migrationsFolder = join(import.meta.dirname, '../prisma/migrations');

export interface IdentityKeys {
  start(): Promise<{ grpcPort: number; webPort: number }>;
  /** Drains the calls, then closes what they used. */
  stop(): Promise<void>;
}

export interface IdentityKeysOverrides {
  readonly telemetry?: Telemetry;
}

/** The service with everything it is made of. */
export function createIdentityKeys(config: IdentityKeysConfig, overrides: IdentityKeysOverrides = {}): IdentityKeys {
  const closing: (() => Promise<unknown> | unknown)[] = [];

  async function start() {
    const telemetry = overrides.telemetry ?? startTelemetry({ service, config });
    if (!overrides.telemetry) closing.push(() => telemetry.shutdown());
    const { log, build } = telemetry;

    const db = openDatabase({
      url: config.databaseUrl,
      service,
      connections: config.databaseConnections,
      statementTimeoutMs: config.statementTimeoutMs,
    });
    closing.push(() => db.close());
    const prisma = new PrismaClient({ adapter: db.prismaAdapter() });
    closing.push(() => prisma.$disconnect());
    const bus = await connectEvents({ config, log, name: `keytrail-${service}` });
    closing.push(() => bus.close());
    await bus.ensure();
    const relay = startRelay({ db, bus, service, log });
    closing.push(() => relay.stop());
    const forgetting = startForgetting({ db, log, everyMs: config.purgeIntervalMs });
    closing.push(() => forgetting.stop());

    const prekeyLimits = prekeyLimitsOf(config);
    const lowPrekeys = createLowPrekeys(db, { reminderMs: config.lowPrekeysReminderMs });
    const conversation = connectPeer(ConversationService, {
      target: config.peerConversation,
      identity: createServiceIdentity(config, service),
      peer: 'conversation',
      timeoutMs: config.peerTimeoutMs,
    });
    closing.push(() => conversation.close());
    const sharing = createSharing(conversation, { rememberMs: config.sharedUsersRememberedMs });
    const server = await startServer({
      service,
      services: [IdentityKeysService],
      rpcs: [
        registerDevice({
          db,
          writerBuild: build.writerBuild,
          maxDevicesPerUser: config.maxDevicesPerUser,
          maxPrekeysPerPool: config.maxPrekeysPerPool,
        }),
        replenishPrekeys({ db, prisma, maxPrekeysPerPool: config.maxPrekeysPerPool }),
        claimPrekeyBundles({ db, lowPrekeys, lowPrekeysBelow: config.lowPrekeysBelow }),
        getDevices({ db, sharing, maxDevicesPerAnswer: config.maxDevicesPerAnswer }),
        listDeviceLog({ db, sharing, maxEntriesPerAnswer: config.maxLogEntriesPerAnswer }),
        getPrekeyStatus({ db, limits: prekeyLimits }),
      ],
      config,
      authenticator: createAuthenticator(config),
      telemetry,
      readiness: async () => {
        const { ready, why } = await schemaReadiness(db, migrationsFolder);
        return { ready, ...(why !== undefined && { why }) };
      },
    });
    closing.push(() => server.stop());
    return { grpcPort: server.grpcPort, webPort: server.webPort };
  }

  async function stop() {
    const failures: unknown[] = [];
    for (let close = closing.pop(); close; close = closing.pop())
      await Promise.resolve(close()).catch((error: unknown) => failures.push(error));
    if (failures.length > 0) throw new AggregateError(failures, 'the service did not stop cleanly');
  }

  return {
    async start() {
      try {
        return await start();
      } catch (error) {
        await stop().catch(() => {});
        throw error;
      }
    },
    stop,
  };
}
