import { RosterRefusedError } from '@keytrail/client';
import { forgeMember } from '@keytrail/local/forged-member';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { someone, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ name: 'e2e-rosters' });
}, 120_000);
afterAll(() => world?.[Symbol.asyncDispose]());

test('members change their group by what they sign, and read on under it', async () => {
  const [a, b, c] = [someone('alice'), someone('bob'), someone('carol')];
  const [alice, bob, carol] = [
    await world.online(a, 'laptop'),
    await world.online(b, 'laptop'),
    await world.online(c, 'laptop'),
  ];
  const { conversationId } = await alice.createConversation({ kind: 'group', members: [b] });
  await alice.changePolicy(conversationId, { permissions: { addMembers: 'member' }, historyPolicy: 'shared' });
  await alice.rotate(conversationId);
  await bob.send(conversationId, 'come in');
  await bob.addMembers(conversationId, [c]);
  await alice.changeRoles(conversationId, { [c]: 'admin' });
  await alice.removeMembers(conversationId, [a]);
  await carol.rotate(conversationId);
  await carol.send(conversationId, 'thanks');
  const texts = (await carol.messages(conversationId)).map((message) => ('text' in message ? message.text : ''));
  expect(texts).toEqual(['come in', 'thanks']);
  const tablet = await world.further(bob, b, 'tablet');
  await tablet.attach();
  expect(await tablet.messages(conversationId)).toHaveLength(2);
}, 120_000);

test('a member whom only the database made one gets no key, whatever the database says', async () => {
  const [a, b, m] = [someone('alice'), someone('bob'), someone('mallory')];
  const alice = await world.online(a, 'laptop');
  const bob = await world.online(b, 'laptop');
  const mallory = await world.online(m, 'laptop');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [b] });
  await bob.openSession(conversationId);
  await forgeMember(world.constellation.databaseUrls.conversation, conversationId, m);
  for (const member of [alice, bob]) {
    expect((await member.getConversation(conversationId)).members.map(({ userId }) => userId)).toContain(m);
    await expect(member.rotate(conversationId)).rejects.toThrow(RosterRefusedError);
  }
  const { epoch } = await mallory.getConversation(conversationId);
  expect(epoch).toBe(1n);
  await expect(mallory.openSession(conversationId, sessionId)).rejects.toMatchObject({
    name: 'KeyMissError',
    recovery: 'NOT_PERMITTED',
  });
}, 120_000);
