import { KeyRequestKind, KeyRequestRole } from '@keytrail/contracts';
import { expect, test } from 'vitest';
import type { ClientEvents } from '../src/index.ts';
import { Lanes } from '../src/lanes.ts';
import { approvedDevice, firstDevice } from './people.ts';
import { World } from './world.ts';

test('one device that asks for much does not keep another one waiting until it has everything', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'bob');
  const names: { conversationId: string; sessionId: string }[] = [];
  for (let n = 0; n < 150; n += 1) {
    const { conversationId, sessionId } = await alice.createConversation({
      kind: 'group',
      members: n < 2 ? ['bob'] : [],
    });
    names.push({ conversationId, sessionId });
  }
  await approvedDevice(world, alice, 'storm');
  const storm = { userId: 'alice', deviceId: 'storm' };
  const bob = { userId: 'bob', deviceId: 'laptop' };
  const answered: string[] = [];
  const all = new Promise<void>((resolve) => {
    alice.on('offerAnswered', ({ requester }: ClientEvents['offerAnswered']) => {
      answered.push(requester.userId);
      if (answered.length === 152) resolve();
    });
  });
  world.holdersOnline = false;
  const open = (who: typeof storm, of: typeof names) =>
    of.map(({ conversationId, sessionId }) =>
      world.openRequest(who, conversationId, sessionId, KeyRequestKind.MISSING),
    );
  const [much, little] = [open(storm, names), open(bob, names.slice(0, 2))];
  await alice.attach();
  world.keys.offer(much);
  world.keys.offer(little);
  await all;
  expect(answered.lastIndexOf('bob')).toBeLessThan(150 - 50);
  expect(world.keys.fulfilled.filter(({ requester }) => requester === 'alice storm').map(({ count }) => count)).toEqual(
    [50, 50, 50],
  );
  await alice.close();
});

test('an offer that a notification tells whole is answered without asking for it', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [] });
  const phone = await approvedDevice(world, alice, 'phone');
  const listings: string[] = [];
  const listed = new Promise<void>((resolve) =>
    world.before.set('listKeyRequests', (({ role }: { role: KeyRequestRole }, { deviceId }: { deviceId: string }) => {
      if (role === KeyRequestRole.HOLDER) listings.push(deviceId);
      if (listings.length === 2) resolve();
    }) as never),
  );
  await alice.attach();
  await phone.attach();
  // Each looks once when it attaches.
  await listed;
  expect((await phone.openSession(conversationId, sessionId)).origin).toBe('recovered');
  expect(listings.toSorted()).toEqual(['laptop', 'phone']);
  await Promise.all([alice.close(), phone.close()]);
});

test('of many offers those that are not ours are declined one by one, and the others answered', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  await firstDevice(world, 'eve');
  const shared = await alice.createConversation({ kind: 'group', members: ['eve'] });
  const own = await alice.createConversation({ kind: 'group', members: [] });
  world.holdersOnline = false;
  const eve = { userId: 'eve', deviceId: 'laptop' };
  const requests = [shared, own].map(({ conversationId, sessionId }) =>
    world.openRequest(eve, conversationId, sessionId, KeyRequestKind.MISSING),
  );
  await alice.attach();
  const both = Promise.all([
    new Promise((resolve) => alice.on('offerAnswered', resolve)),
    new Promise((resolve) => alice.on('offerDeclined', resolve)),
  ]);
  world.keys.offer(requests);
  expect(await both).toMatchObject([
    { sessionId: shared.sessionId },
    { sessionId: own.sessionId, reason: 'NOT_ENTITLED' },
  ]);
  await alice.close();
});

test('lanes take turns batch by batch, the urgent first, and nobody is left behind', async () => {
  const order: string[] = [];
  const lanes = new Lanes<string>({
    atOnce: 1,
    batchOf: 2,
    isUrgent: (item) => item.endsWith('!'),
    work: async (items) => {
      order.push(items.join(' '));
    },
  });
  const of = { a: ['a1', 'a2', 'a3', 'a4!', 'a5'], b: ['b1'], c: ['c1', 'c2', 'c3'] };
  await Promise.all(Object.entries(of).flatMap(([lane, items]) => items.map((item) => lanes.add(lane, item))));
  expect(order).toEqual(['a4! a1', 'b1', 'c1 c2', 'a2 a3', 'c3', 'a5']);
});

test('a batch that fails is told to one, and the lane goes on', async () => {
  const lanes = new Lanes<number>({
    atOnce: 1,
    batchOf: 2,
    isUrgent: () => false,
    work: async (items) => {
      if (items.includes(1)) throw new Error('no');
    },
  });
  const outcomes = await Promise.allSettled([1, 2, 3].map((item) => lanes.add('one', item)));
  expect(outcomes.map(({ status }) => status)).toEqual(['rejected', 'fulfilled', 'fulfilled']);
});
