import type { Transport } from '@connectrpc/connect';
import { type KeytrailClient, RotationLost } from '@keytrail/client';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;

beforeAll(async () => {
  world = await startWorld({ name: 'test-conflicts', replicas: { conversation: 2 } });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

/** Something happens just before the first call of a method is sent. */
function before(transport: Transport, methodName: string, happens: () => Promise<unknown>): Transport {
  let first = true;
  return {
    stream: transport.stream.bind(transport),
    async unary(method, ...rest) {
      if (method.name === methodName && first) {
        first = false;
        await happens();
      }
      return transport.unary(method, ...rest);
    },
  };
}

/** Alice's laptop, where something happens between the listing of devices and the commit of the session. */
async function aliceBefore(user: string, methodName: string, happens: () => Promise<unknown>): Promise<KeytrailClient> {
  const transports = world.transportsOf(user, 'laptop');
  const conversation = before(transports.conversation, methodName, happens);
  return world.online(user, 'laptop', { transports: { ...transports, conversation } });
}

async function devicesThatRead(clients: readonly KeytrailClient[], conversationId: string): Promise<string[]> {
  const current = await Promise.all(
    clients.map((client) => client.openSession(conversationId, undefined, { recover: false })),
  );
  return current.map(({ sessionId, origin }) => `${sessionId} ${origin}`);
}

describe('what changes while a session is being made', () => {
  test('a device that is added between listing and commit is sealed to all the same', async () => {
    const [a, b] = [someone('alice'), someone('bob')];
    const bob = await world.online(b, 'phone');
    let tablet: KeytrailClient | undefined;
    const alice = await aliceBefore(a, 'CreateConversation', async () => {
      tablet = await world.further(bob, b, 'tablet');
    });
    const { conversationId, sessionId, envelopesWritten } = await alice.createConversation({
      kind: 'group',
      members: [b],
    });
    expect(envelopesWritten).toBe(3);
    expect(await devicesThatRead([tablet as KeytrailClient], conversationId)).toEqual([`${sessionId} read`]);
  });

  test('a device that is revoked between listing and commit gets nothing', async () => {
    const [a, b] = [someone('alice'), someone('bob')];
    const bob = await world.online(b, 'phone');
    await world.further(bob, b, 'stolen');
    const alice = await aliceBefore(a, 'CreateConversation', () => bob.revokeDevice('stolen'));
    const { conversationId, envelopesWritten } = await alice.createConversation({ kind: 'group', members: [b] });
    expect(envelopesWritten).toBe(2);
    await alice.send(conversationId, 'among the two');
    expect(await bob.messages(conversationId)).toMatchObject([{ text: 'among the two' }]);
  });

  test('a device that is added while a rotation is being made is in the next session', async () => {
    const [a, b] = [someone('alice'), someone('bob')];
    const bob = await world.online(b, 'phone');
    let tablet: KeytrailClient | undefined;
    const alice = await aliceBefore(a, 'RotateSession', async () => {
      tablet = await world.further(bob, b, 'tablet');
    });
    const { conversationId } = await alice.createConversation({ kind: 'group', members: [b] });
    const { epoch, sessionId } = await alice.rotate(conversationId);
    expect(epoch).toBe(2n);
    expect(await devicesThatRead([tablet as KeytrailClient], conversationId)).toEqual([`${sessionId} read`]);
  });

  test('of devices that rotate at once one wins each epoch, and all go on under the last one', async () => {
    const users = [someone('alice'), someone('bob'), someone('carol')];
    const clients = await Promise.all(users.map((user) => world.online(user, 'phone')));
    const [alice] = clients as [KeytrailClient];
    const { conversationId } = await alice.createConversation({ kind: 'group', members: users.slice(1) });
    const outcomes = await Promise.allSettled(clients.map((client) => client.rotate(conversationId)));
    const lost = outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [outcome.reason] : []));
    for (const reason of lost) expect(reason).toBeInstanceOf(RotationLost);
    const { epoch, sessionId } = await alice.getConversation(conversationId);
    expect(Number(epoch)).toBe(1 + users.length - lost.length);
    for (const client of clients) {
      expect((await client.openSession(conversationId)).sessionId).toBe(sessionId);
      await client.send(conversationId, `from ${client.user}`);
    }
    const read = await alice.messages(conversationId);
    expect(read.map((message) => ('text' in message ? message.text : message.error))).toEqual(
      users.map((user) => `from ${user}`),
    );
  });

  test('both sides that make their direct conversation at once have the same one', async () => {
    const [a, b] = [someone('alice'), someone('bob')];
    const [alice, bob] = [await world.online(a, 'phone'), await world.online(b, 'phone')];
    const made = await Promise.all([
      alice.createConversation({ kind: 'direct', members: [b] }),
      bob.createConversation({ kind: 'direct', members: [a] }),
    ]);
    const [conversationId] = made.map((each) => each.conversationId) as [string];
    expect(made.map((each) => each.conversationId)).toEqual([conversationId, conversationId]);
    await alice.send(conversationId, 'from alice');
    await bob.send(conversationId, 'from bob');
    expect((await alice.messages(conversationId)).map((each) => ('text' in each ? each.text : each.error))).toEqual([
      'from alice',
      'from bob',
    ]);
  });
});

describe('a rotation that is due', () => {
  test('is made after a removal without a call of the application, and the removed member reads nothing of it', async () => {
    const [a, b, c] = [someone('alice'), someone('bob'), someone('carol')];
    const rotating = { autoRotate: { jitterMs: 200 } };
    const alice = await world.online(a, 'phone', rotating);
    const bob = await world.online(b, 'phone', rotating);
    const carol = await world.online(c, 'phone', rotating);
    const { conversationId } = await alice.createConversation({ kind: 'group', members: [b, c] });
    const rotated = Promise.race(
      [alice, bob].map((client) => new Promise<{ sessionId: string }>((resolve) => client.on('rotated', resolve))),
    );
    await alice.removeMembers(conversationId, [c]);
    const { sessionId } = await rotated;
    expect(await alice.getConversation(conversationId)).toMatchObject({ epoch: 2n, sessionId });
    for (const client of [alice, bob]) await client.openSession(conversationId, sessionId, { recover: false });
    await bob.send(conversationId, 'without carol');
    await expect(carol.openSession(conversationId, sessionId, { recover: false })).rejects.toMatchObject({
      recovery: 'NOT_PERMITTED',
    });
  });
});
