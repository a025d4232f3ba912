import { randomUUID } from 'node:crypto';
import { createClient as connectClient, type Transport } from '@connectrpc/connect';
import { IdentityKeysService } from '@keytrail/contracts';
import { createGrpcTransport, readRefusal } from '@keytrail/rpc';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  // Few enough to be used up by a test, enough for a first contact that has to be made twice.
  world = await startWorld({
    name: 'e2e-first-contact',
    env: { KEYTRAIL_CLAIMS_PER_PAIR: '1', KEYTRAIL_CLAIMS_PER_PAIR_BURST: '2' },
  });
}, 120_000);
afterAll(() => world?.[Symbol.asyncDispose]());

/** The transport, with something done once between the answer to a method and the caller. */
function afterFirst(transport: Transport, method: string, deed: () => Promise<unknown>): Transport {
  let done = false;
  return {
    async unary(...call) {
      const answer = await transport.unary(...call);
      if (call[0].name === method && !done) {
        done = true;
        await deed();
      }
      return answer;
    },
    stream: (...call) => transport.stream(...call),
  } as Transport;
}

test('users who share nothing yet begin a group: every device of theirs has the key', async () => {
  const [a, b, c] = [someone('alice'), someone('bob'), someone('carol')];
  const alice = await world.online(a, 'laptop');
  const bob = await world.online(b, 'laptop');
  const phone = await world.further(bob, b, 'phone');
  const carol = await world.online(c, 'laptop');
  const made = await alice.createConversation({ kind: 'group', members: [b, c] });
  expect(made).toMatchObject({ envelopesWritten: 4, withheld: [] });
  await alice.send(made.conversationId, 'hello');
  for (const reader of [bob, phone, carol]) {
    const [message] = await reader.messages(made.conversationId);
    expect(message).toMatchObject({ text: 'hello' });
  }
});

test('a new device verifies what was written by somebody who has left', async () => {
  const [a, b, c] = [someone('alice'), someone('bob'), someone('carol')];
  const alice = await world.online(a, 'laptop');
  const bob = await world.online(b, 'laptop');
  const carol = await world.online(c, 'laptop');
  const { conversationId } = await alice.createConversation({ kind: 'group', members: [b, c] });
  await carol.send(conversationId, 'before I go');
  await alice.removeMembers(conversationId, [c]);
  await alice.rotate(conversationId);
  const tablet = await world.further(bob, b, 'tablet');
  await tablet.attach();
  expect(await tablet.messages(conversationId)).toMatchObject([{ text: 'before I go', sender: { userId: c } }]);
});

test('a device that comes while a first contact is being made is in the session too', async () => {
  const [a, b] = [someone('alice'), someone('bob')];
  const bob = await world.online(b, 'laptop');
  const transports = world.transportsOf(a, 'laptop');
  const arrival = async () => {
    await world.further(bob, b, 'phone');
  };
  const alice = world.device(a, 'laptop', {
    transports: { ...transports, identityKeys: afterFirst(transports.identityKeys, 'ClaimPrekeyBundles', arrival) },
  });
  await alice.register();
  const made = await alice.createConversation({ kind: 'direct', members: [b] });
  expect(made).toMatchObject({ envelopesWritten: 3, withheld: [] });
});

test('a key request is fulfilled although the holder has no claim left for the device', async () => {
  const [a, b] = [someone('alice'), someone('bob')];
  const alice = await world.online(a, 'laptop');
  const bob = await world.online(b, 'laptop');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: [b] });
  const phone = await world.further(bob, b, 'phone');
  await bob.close();
  const raw = createGrpcTransport({
    target: world.constellation.grpcTarget('identity-keys'),
    authorization: async () => `Bearer ${await world.constellation.issuer.token({ userId: a, deviceId: 'laptop' })}`,
  });
  try {
    const identityKeys = connectClient(IdentityKeysService, raw);
    const claim = () =>
      identityKeys.claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId: b, deviceId: 'phone' }] });
    await claim();
    await claim();
    expect(readRefusal(await claim().catch((error: unknown) => error))).toMatchObject({ reason: 'LIMIT_EXCEEDED' });
  } finally {
    raw.close();
  }
  await phone.attach();
  const opened = await phone.openSession(conversationId, sessionId);
  expect(opened).toMatchObject({ origin: 'recovered', sealer: { userId: a, deviceId: 'laptop' } });
});
