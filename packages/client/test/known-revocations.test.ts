import { type RotateSessionRequest, RotationDueReason } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { type ClientOptions, memoryKeyStore } from '../src/index.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

const readersOf = (world: World, sessionId: string) => [...world.session(sessionId).envelopes.keys()];
const draining = () => refuse('SHUTTING_DOWN', 'draining');

/** Alice, whose calls are not tried again, and bob with a device that will be lost. */
async function beforeRevocation(options: Partial<ClientOptions> = {}) {
  const world = new World();
  const settings = { retry: { retries: 0 }, keyStore: memoryKeyStore(), ...options };
  const alice = await firstDevice(world, 'alice', 'laptop', settings);
  const bob = await firstDevice(world, 'bob');
  const stolen = await approvedDevice(world, bob, 'stolen');
  return { world, alice, bob, stolen, settings };
}

test('a rotation that was prepared before a revocation is made anew', async () => {
  const { world, alice, bob, stolen, settings } = await beforeRevocation();
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  let prepared: RotateSessionRequest | undefined;
  world.before.set('rotateSession', ((request: RotateSessionRequest) => {
    prepared = request;
    throw draining();
  }) as never);
  await expect(alice.rotate(conversationId)).rejects.toThrow('SHUTTING_DOWN');
  world.before.delete('rotateSession');
  await bob.revokeDevice('stolen');
  const again = clientOf(world, 'alice', 'laptop', settings);
  const { sessionId, epoch } = await again.rotate(conversationId);
  expect([epoch, readersOf(world, sessionId)]).toEqual([2n, ['alice laptop', 'bob laptop']]);
  expect(prepared?.session?.envelopes.map(({ recipient }) => recipient?.deviceId)).toContain('stolen');
  await again.send(conversationId, 'after the revocation');
  expect(await bob.messages(conversationId)).toMatchObject([{ text: 'after the revocation' }]);
  const [unreadable] = await stolen.messages(conversationId, { recover: false });
  expect(unreadable).toHaveProperty('error');
});

test('a rotation that was accepted without an answer, before a revocation, is followed by another one', async () => {
  const { world, alice, bob, settings } = await beforeRevocation();
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  world.after.set('rotateSession', () => {
    world.after.delete('rotateSession');
    throw draining();
  });
  await expect(alice.rotate(conversationId)).rejects.toThrow('SHUTTING_DOWN');
  const accepted = world.conversation(conversationId);
  await bob.revokeDevice('stolen');
  const again = clientOf(world, 'alice', 'laptop', settings);
  const { sessionId, epoch } = await again.rotate(conversationId);
  expect([accepted.epoch, epoch, readersOf(world, sessionId)]).toEqual([2n, 3n, ['alice laptop', 'bob laptop']]);
  // What was accepted is this device's own still.
  const { origin } = await again.openSession(conversationId, accepted.sessionId, { recover: false });
  expect(origin).toBeDefined();
});

test('a rotation that was prepared for another roster is made anew before it is sent', async () => {
  const { world, alice } = await beforeRevocation();
  await firstDevice(world, 'carol');
  const { conversationId } = await alice.createConversation({ kind: 'group', members: ['bob', 'carol'] });
  world.before.set('rotateSession', () => {
    throw draining();
  });
  await expect(alice.rotate(conversationId)).rejects.toThrow('SHUTTING_DOWN');
  world.before.delete('rotateSession');
  await alice.removeMembers(conversationId, ['carol']);
  const sent = world.count('rotateSession');
  const { sessionId } = await alice.rotate(conversationId);
  expect(world.count('rotateSession')).toBe(sent + 1);
  expect(readersOf(world, sessionId)).toEqual(['alice laptop', 'bob laptop', 'bob stolen']);
});

test('a conversation that was prepared before a revocation is made anew under its request id', async () => {
  const { world, alice, bob, settings } = await beforeRevocation();
  const wanted = { kind: 'direct', members: ['bob'], requestId: crypto.randomUUID() } as const;
  world.before.set('createConversation', () => {
    throw draining();
  });
  await expect(alice.createConversation(wanted)).rejects.toThrow('SHUTTING_DOWN');
  world.before.delete('createConversation');
  await bob.revokeDevice('stolen');
  const made = await clientOf(world, 'alice', 'laptop', settings).createConversation(wanted);
  expect([made.epoch, readersOf(world, made.sessionId)]).toEqual([1n, ['alice laptop', 'bob laptop']]);
});

test('a conversation that was made without an answer, before a revocation, is rotated', async () => {
  const { world, alice, bob, settings } = await beforeRevocation();
  const wanted = { kind: 'direct', members: ['bob'], requestId: crypto.randomUUID() } as const;
  world.after.set('createConversation', () => {
    world.after.delete('createConversation');
    throw draining();
  });
  await expect(alice.createConversation(wanted)).rejects.toThrow('SHUTTING_DOWN');
  await bob.revokeDevice('stolen');
  const sent = world.count('createConversation');
  const made = await clientOf(world, 'alice', 'laptop', settings).createConversation(wanted);
  expect([made.epoch, readersOf(world, made.sessionId)]).toEqual([2n, ['alice laptop', 'bob laptop']]);
  expect(world.count('createConversation')).toBe(sent);
});

test('what is unanswered and still fits is sent again as it was, though the lists are looked at', async () => {
  const { world, alice, settings } = await beforeRevocation();
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  world.after.set('rotateSession', () => {
    world.after.delete('rotateSession');
    throw draining();
  });
  await expect(alice.rotate(conversationId)).rejects.toThrow('SHUTTING_DOWN');
  const { sessionId } = await clientOf(world, 'alice', 'laptop', settings).rotate(conversationId);
  expect([sessionId, world.conversation(conversationId).epoch]).toEqual([
    world.conversation(conversationId).sessionId,
    2n,
  ]);
});

test('nothing is sent under a session that a device reads which was seen revoked, though no server asks', async () => {
  const { world, alice, bob } = await beforeRevocation();
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await alice.send(conversationId, 'before');
  await bob.revokeDevice('stolen');
  const told = next(alice, 'devicesChanged');
  await alice.createConversation({ kind: 'group', members: ['bob'] });
  expect((await told).revoked).toEqual(['stolen']);
  expect(world.conversation(conversationId).rotationDue).toBe(RotationDueReason.UNSPECIFIED);
  const sent = await alice.send(conversationId, 'after');
  expect([sent.epoch, sent.sessionId === sessionId]).toEqual([2n, false]);
  expect(readersOf(world, sent.sessionId)).toEqual(['alice laptop', 'bob laptop']);
  expect((await alice.send(conversationId, 'and on')).epoch).toBe(2n);
});
