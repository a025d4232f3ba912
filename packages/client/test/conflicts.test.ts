import { create } from '@bufbuild/protobuf';
import { type InitialSession, type RotateSessionRequest, SessionIncompleteSchema } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc/refusal';
import { expect, test } from 'vitest';
import { RotationLost } from '../src/index.ts';
import { approvedDevice, firstDevice } from './people.ts';
import { World } from './world.ts';

const sealedTo = (session: InitialSession | undefined) =>
  (session?.envelopes ?? []).map(({ recipient }) => `${recipient?.userId} ${recipient?.deviceId}`).toSorted();

/** As the server says it: these devices are missing. */
function incomplete(missing: { userId: string; deviceId: string }[]) {
  const details = [{ desc: SessionIncompleteSchema, value: create(SessionIncompleteSchema, { missing }) }];
  return refuse('SESSION_INCOMPLETE', 'devices are missing', { details });
}

test('a session for 300 devices is a handful of calls, and one conflict costs a second round of them, with one claim more', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop');
  const members: string[] = [];
  for (let n = 0; n < 299; n += 1) {
    await firstDevice(world, `member-${n}`, 'phone', { prekeys: 1 });
    members.push(`member-${n}`);
  }
  world.before.set('createConversation', async () => {
    world.before.delete('createConversation');
    await approvedDevice(world, clientOfMember, 'tablet', { prekeys: 1 });
  });
  const clientOfMember = await firstDevice(world, 'latecomer', 'phone', { prekeys: 1 });
  world.counts.clear();
  world.claims.splice(0);
  const { envelopesWritten } = await alice.createConversation({ kind: 'group', members: [...members, 'latecomer'] });
  expect(envelopesWritten).toBe(302);
  expect(world.count('createConversation')).toBe(2);
  // 301 users are two pages, in each of two rounds; the latecomer's new device looks once, too.
  expect(world.count('getDevices')).toBeLessThanOrEqual(2 * 2 + 2);
  expect(world.count('listDeviceLog')).toBeLessThanOrEqual(2 + 3);
  expect(world.claims.map(({ devices }) => devices.length)).toEqual([300, 1]);
});

test('a user who shares nothing yet is claimed from again only when the conflict is about that user', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const carol = await firstDevice(world, 'carol');
  await firstDevice(world, 'bob');
  for (const user of ['bob', 'carol']) world.identities.hidden.add(user);
  world.before.set('createConversation', async () => {
    world.before.delete('createConversation');
    world.identities.hidden.delete('carol');
    await approvedDevice(world, carol, 'tablet');
    world.identities.hidden.add('carol');
  });
  world.claims.splice(0);
  const { envelopesWritten } = await alice.createConversation({ kind: 'group', members: ['bob', 'carol'] });
  expect(envelopesWritten).toBe(4);
  expect(world.claims.map(({ devices }) => devices)).toEqual([
    ['bob laptop', 'carol laptop'],
    ['carol laptop', 'carol tablet'],
  ]);
});

test('a device that is revoked between listing and commit gets nothing, and nobody else is claimed from again', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob');
  await approvedDevice(world, bob, 'stolen');
  const sent: string[][] = [];
  world.before.set('createConversation', (async ({ initialSession }: { initialSession?: InitialSession }) => {
    sent.push(sealedTo(initialSession));
    if (sent.length > 1) return;
    await bob.revokeDevice('stolen');
    throw refuse('SESSION_INCOMPLETE', 'a device is revoked', {
      details: [
        {
          desc: SessionIncompleteSchema,
          value: create(SessionIncompleteSchema, { unexpected: [{ userId: 'bob', deviceId: 'stolen' }] }),
        },
      ],
    });
  }) as never);
  world.claims.splice(0);
  await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(sent).toEqual([
    ['alice laptop', 'bob laptop', 'bob stolen'],
    ['alice laptop', 'bob laptop'],
  ]);
  expect(world.claims.map(({ devices }) => devices)).toEqual([['bob laptop', 'bob stolen']]);
});

test('a direct conversation that the other side made first is the one that is returned', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob');
  const theirs = await bob.createConversation({ kind: 'direct', members: ['alice'] });
  world.before.set('createConversation', () => {
    const metadata = { conversation_id: theirs.conversationId };
    throw refuse('DIRECT_CONVERSATION_EXISTS', 'there is one', { metadata });
  });
  const mine = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(mine).toMatchObject({
    conversationId: theirs.conversationId,
    sessionId: theirs.sessionId,
    envelopesWritten: 0,
  });
  await alice.send(mine.conversationId, 'hello');
  expect(await bob.messages(theirs.conversationId)).toMatchObject([{ text: 'hello' }]);
});

test('of two devices that rotate at once one wins, and the other one reads the winner’s session', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob');
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  // Both have prepared theirs before either is committed.
  const both = Promise.withResolvers<void>();
  let arrived = 0;
  world.before.set('rotateSession', async () => {
    arrived += 1;
    if (arrived === 2) both.resolve();
    await both.promise;
  });
  const outcomes = await Promise.allSettled([alice.rotate(conversationId), bob.rotate(conversationId)]);
  expect(outcomes.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected']);
  const lost = outcomes.find(({ status }) => status === 'rejected') as PromiseRejectedResult;
  expect(lost.reason).toBeInstanceOf(RotationLost);
  const { sessionId } = world.conversation(conversationId);
  expect(lost.reason.winner).toEqual({ epoch: 2n, sessionId });
  for (const client of [alice, bob]) expect((await client.openSession(conversationId)).sessionId).toBe(sessionId);
  await Promise.all([alice.close(), bob.close()]);
});

test('a rotation whose candidate was given up, and whose roster changed after that, is made in the end', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await Promise.all([firstDevice(world, 'bob'), firstDevice(world, 'carol')]);
  const { conversationId } = await alice.createConversation({ kind: 'group', members: ['bob', 'carol'] });
  const rosters: bigint[] = [];
  world.before.set('rotateSession', (async ({ expectedRosterVersion }: RotateSessionRequest) => {
    rosters.push(expectedRosterVersion);
    if (rosters.length === 1) throw refuse('SESSION_ABORTED', 'given up', { metadata: { session_id: 'x' } });
    if (rosters.length === 2) await alice.removeMembers(conversationId, ['carol']);
  }) as never);
  const { epoch, sessionId } = await alice.rotate(conversationId);
  expect([epoch, rosters]).toEqual([2n, [1n, 1n, 2n]]);
  expect([...world.session(sessionId).envelopes.keys()].toSorted()).toEqual(['alice laptop', 'bob laptop']);
  await alice.close();
});

test('a conflict that never ends is given up after five tries', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'bob');
  world.before.set('createConversation', () => {
    throw incomplete([{ userId: 'bob', deviceId: 'nobody-else-sees-it' }]);
  });
  await expect(alice.createConversation({ kind: 'direct', members: ['bob'] })).rejects.toMatchObject({
    reason: 'SESSION_INCOMPLETE',
  });
  expect(world.count('createConversation')).toBe(5);
  expect(world.claims).toHaveLength(1);
});
