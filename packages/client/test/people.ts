import { nodePrimitives } from '@keytrail/crypto/node';
import { type ClientEvents, type ClientOptions, createClient, type KeytrailClient } from '../src/index.ts';
import type { World } from './world.ts';

export function clientOf(
  world: World,
  user: string,
  device: string,
  options: Partial<ClientOptions> = {},
): KeytrailClient {
  const transports = world.transports(user, device);
  return createClient({
    user,
    device,
    transports,
    primitives: nodePrimitives,
    prekeys: 5,
    upkeep: { jitterMs: 0 },
    // Most tests are about one key or one rotation, which they ask for themselves.
    recoverHistory: false,
    autoRotate: false,
    ...options,
  });
}

/** A user's first device, registered. */
export async function firstDevice(
  world: World,
  user: string,
  device = 'laptop',
  options: Partial<ClientOptions> = {},
): Promise<KeytrailClient> {
  const client = clientOf(world, user, device, options);
  await client.register();
  return client;
}

/** A further device of a user, approved by one that is there. */
export async function approvedDevice(
  world: World,
  by: KeytrailClient,
  device: string,
  options: Partial<ClientOptions> = {},
): Promise<KeytrailClient> {
  const client = clientOf(world, by.user, device, options);
  const link = await client.createLinkRequest();
  await client.registerApproved(await by.approveDevice(link, await client.linkCode(link)));
  return client;
}

/** The next event of a name. */
export function next<Name extends keyof ClientEvents>(client: KeytrailClient, name: Name): Promise<ClientEvents[Name]> {
  return new Promise((resolve) => {
    const off = client.on(name, (event) => {
      off();
      resolve(event);
    });
  });
}
