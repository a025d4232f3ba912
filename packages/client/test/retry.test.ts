import { Code, ConnectError } from '@connectrpc/connect';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { memoryKeyStore } from '../src/index.ts';
import { approvedDevice, clientOf, firstDevice } from './people.ts';
import { World } from './world.ts';

const requestId = '3b241101-e2bb-4255-8caf-4136c566a962';
const noRetries = { retry: { retries: 0 } };

function lost(): never {
  throw new ConnectError('the connection was lost', Code.Unavailable);
}

test('a claim whose answer was lost is made again with the same id, and burns nothing', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', noRetries);
  await firstDevice(world, 'bob');
  world.after.set('claimPrekeyBundles', lost);
  await expect(alice.createConversation({ kind: 'direct', members: ['bob'], requestId })).rejects.toMatchObject({
    code: Code.Unavailable,
  });
  world.after.clear();
  await alice.createConversation({ kind: 'direct', members: ['bob'], requestId });
  expect(world.claims).toHaveLength(2);
  expect(new Set(world.claims.map(({ claimId }) => claimId)).size).toBe(1);
  expect(world.pools.get('bob laptop')?.oneTime).toHaveLength(4);
});

test('a creation whose answer was lost is sent again as it was, also by the next process', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { ...noRetries, keyStore });
  const bob = await firstDevice(world, 'bob');
  world.after.set('createConversation', lost);
  const wanted = { kind: 'direct', members: ['bob'], requestId } as const;
  await expect(alice.createConversation(wanted)).rejects.toMatchObject({ code: Code.Unavailable });
  world.after.clear();
  const restarted = clientOf(world, 'alice', 'laptop', { ...noRetries, keyStore });
  const { conversationId } = await restarted.createConversation(wanted);
  expect([...world.conversations.keys()]).toEqual([conversationId]);
  expect(world.sessions.size).toBe(1);
  await restarted.send(conversationId, 'hello');
  expect(await bob.messages(conversationId)).toMatchObject([{ text: 'hello' }]);
});

test('a rotation whose answer was lost is not made twice', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', noRetries);
  const { conversationId } = await alice.createConversation({ kind: 'group', members: [] });
  world.after.set('rotateSession', lost);
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ code: Code.Unavailable });
  world.after.clear();
  expect((await alice.rotate(conversationId)).epoch).toBe(2n);
  expect(world.sessions.size).toBe(2);
  expect((await alice.openSession(conversationId)).epoch).toBe(2n);
});

test('a device that appears meanwhile is sealed to in the next try, and nobody else costs a prekey again', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob');
  world.before.set('createConversation', async () => {
    world.before.delete('createConversation');
    await approvedDevice(world, bob, 'phone');
  });
  const { sessionId, envelopesWritten } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(envelopesWritten).toBe(3);
  expect(world.session(sessionId).envelopes.has('bob phone')).toBe(true);
  expect(world.claims.map(({ devices }) => devices)).toEqual([['bob laptop'], ['bob phone']]);
});

test('what is refused for good is not kept', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const alice = await firstDevice(world, 'alice', 'laptop', { keyStore });
  await firstDevice(world, 'bob');
  world.before.set('createConversation', () => {
    throw refuse('DIRECT_CONVERSATION_EXISTS', 'there is one', { metadata: { conversation_id: 'the-other' } });
  });
  await expect(alice.createConversation({ kind: 'direct', members: ['bob'], requestId })).rejects.toMatchObject({
    reason: 'DIRECT_CONVERSATION_EXISTS',
    metadata: { conversation_id: 'the-other' },
  });
  expect(await keyStore.pending(`create ${requestId}`)).toBeUndefined();
});

test('a message whose answer was lost is in the log once, and no counter is used twice', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', { retry: { retries: 1, backoffMs: 1 } });
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [] });
  let failures = 1;
  world.after.set('sendMessage', () => {
    failures -= 1;
    if (failures >= 0) lost();
  });
  await alice.send(conversationId, 'once');
  await alice.send(conversationId, 'twice');
  const log = world.messages.get(conversationId) ?? [];
  expect(log.map(({ senderCounter }) => senderCounter)).toEqual([0n, 1n]);
  expect(await alice.messages(conversationId)).toMatchObject([
    { text: 'once', sessionId },
    { text: 'twice', sessionId },
  ]);
});

test('a registration whose answer was lost is the same registration', async () => {
  const world = new World();
  const alice = clientOf(world, 'alice', 'laptop', noRetries);
  const uploads: Uint8Array[] = [];
  world.before.set('registerDevice', ({ identityKey }: { identityKey: Uint8Array }) => {
    uploads.push(identityKey);
  });
  world.after.set('registerDevice', lost);
  await expect(alice.register()).rejects.toMatchObject({ code: Code.Unavailable });
  world.after.clear();
  await alice.register();
  await alice.register();
  expect(uploads).toHaveLength(2);
  expect(uploads[0]).toEqual(uploads[1]);
});

test('a message that was changed on its way is told apart from those that were not', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  for (const text of ['one', 'two', 'three']) await alice.send(conversationId, text);
  const second = world.messages.get(conversationId)?.[1];
  if (second) second.ciphertext = second.ciphertext.map((byte, i) => (i === 0 ? byte ^ 1 : byte));
  const read = await bob.messages(conversationId);
  expect(read.map((message) => ('text' in message ? message.text : message.error.message))).toEqual([
    'one',
    'message: signature',
    'three',
  ]);
  expect(await bob.messages(conversationId, { after: 2n })).toMatchObject([{ sequence: 3n }]);
});
