import { createWebTransports } from '@keytrail/client/web';
import { noblePrimitives } from '@keytrail/crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;

beforeAll(async () => {
  world = await startWorld({ name: 'test-web' });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

/** The SDK as a browser runs it: Connect over fetch, and primitives in plain JavaScript. */
function browserDevice(user: string, device: string) {
  const { constellation } = world;
  return world.device(user, device, {
    primitives: noblePrimitives,
    prekeys: 5,
    transports: createWebTransports({
      targets: {
        identityKeys: constellation.webUrl('identity-keys'),
        conversation: constellation.webUrl('conversation'),
        session: constellation.webUrl('session'),
        presence: constellation.webUrl('presence'),
      },
      token: () => constellation.issuer.token({ userId: user, deviceId: device }),
    }),
  });
}

describe('the SDK over the web wire', () => {
  test('carries the whole main path, with a holder on the gRPC wire', async () => {
    const [a, b] = [someone('alice'), someone('bob')];
    const alice = await world.online(a, 'phone');
    const bob = browserDevice(b, 'browser');
    await bob.register();
    await bob.attach();
    const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
    await alice.send(conversationId, 'from gRPC to the web');
    expect(await bob.messages(conversationId)).toMatchObject([{ text: 'from gRPC to the web' }]);

    const tab = browserDevice(b, 'second-browser');
    const link = await tab.createLinkRequest();
    await tab.registerApproved(await bob.approveDevice(link, await tab.linkCode(link)));
    await tab.attach();
    expect(await tab.openSession(conversationId, sessionId)).toMatchObject({ origin: 'recovered' });
    expect(await tab.messages(conversationId)).toMatchObject([{ text: 'from gRPC to the web' }]);
    await bob.send(conversationId, 'and back');
    expect((await alice.messages(conversationId)).at(-1)).toMatchObject({ text: 'and back' });
  });
});
