import {
  type ClientOptions,
  createClient,
  type KeytrailClient,
  memoryKeyStore,
  type Transports,
} from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';
import { type Constellation, type ConstellationOptions, startConstellation } from '@keytrail/local/constellation';
import { expectDeclared, spansIn } from './declared-attributes.ts';

export type { Constellation };

/** All four services on real servers of their own, and SDK clients on top. Disposal throws when a span had an attribute that is not declared. */
export interface World extends AsyncDisposable {
  readonly constellation: Constellation;
  transportsOf(user: string, device: string): Transports;
  /** The SDK of a device that is not registered yet. */
  device(user: string, device: string, options?: Partial<ClientOptions>): KeytrailClient;
  /** A device that is registered and attached; the first of its user. */
  online(user: string, device: string, options?: Partial<ClientOptions>): Promise<KeytrailClient>;
  /** A further device, approved by one that the user has. */
  further(
    existing: KeytrailClient,
    user: string,
    device: string,
    options?: Partial<ClientOptions>,
  ): Promise<KeytrailClient>;
}

/** Users are named apart per test, so that tests of one world do not meet. */
let userNumber = 0;
export function someone(name: string): string {
  userNumber += 1;
  return `${name}.${userNumber}`;
}

export async function startWorld(options: ConstellationOptions): Promise<World> {
  const constellation = await startConstellation({ own: false, ...options });
  const clients: KeytrailClient[] = [];
  const world: World = {
    constellation,
    transportsOf: (user, device) =>
      createNodeTransports({
        targets: {
          identityKeys: constellation.grpcTarget('identity-keys'),
          conversation: constellation.grpcTarget('conversation'),
          session: constellation.grpcTarget('session'),
          presence: constellation.grpcTarget('presence'),
        },
        token: () => constellation.issuer.token({ userId: user, deviceId: device }),
      }),
    device(user, device, more = {}) {
      const client = createClient({
        user,
        device,
        primitives: nodePrimitives,
        keyStore: memoryKeyStore(),
        transports: world.transportsOf(user, device),
        // Most tests are about one key or one rotation, which they ask for themselves.
        recoverHistory: false,
        autoRotate: false,
        ...more,
      });
      clients.push(client);
      return client;
    },
    async online(user, device, more) {
      const client = world.device(user, device, more);
      await client.register();
      await client.attach();
      return client;
    },
    async further(existing, user, device, more) {
      const client = world.device(user, device, more);
      const link = await client.createLinkRequest();
      await client.registerApproved(await existing.approveDevice(link, await client.linkCode(link)));
      return client;
    },
    async [Symbol.asyncDispose]() {
      await Promise.allSettled(clients.map((client) => client.close()));
      try {
        // What still waits for its export is sent as they stop.
        await Promise.allSettled(constellation.replicas.map(({ process }) => process.stop()));
        expectDeclared(await spansIn(constellation.traces));
      } finally {
        await constellation.stop();
      }
    },
  };
  return world;
}
