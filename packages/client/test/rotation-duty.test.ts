import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { RotationDueReason } from '@keytrail/contracts';
import { expect, test } from 'vitest';
import { FakeClock } from './fake-clock.ts';
import { firstDevice, next } from './people.ts';
import { World } from './world.ts';

const bobsLaptop = { userId: 'bob', deviceId: 'laptop' };

async function pair(options: Parameters<typeof firstDevice>[3] = {}) {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const bob = await firstDevice(world, 'bob', 'laptop', { autoRotate: { jitterMs: 0 }, ...options });
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  return { world, alice, bob, conversationId };
}

function makeDue(world: World, conversationId: string): void {
  const rotationDue = RotationDueReason.AGE;
  world.conversations.set(conversationId, { ...world.conversation(conversationId), rotationDue });
}

test('a device that is asked makes the rotation, and the application only hears of it', async () => {
  const { world, alice, bob, conversationId } = await pair();
  await bob.attach();
  const rotated = next(bob, 'rotated');
  world.keys.askRotation(conversationId, bobsLaptop);
  expect(await rotated).toMatchObject({ conversationId, epoch: 2n });
  expect((await alice.getConversation(conversationId)).rotationDue).toBe(RotationDueReason.UNSPECIFIED);
  await bob.close();
});

test('what the greeting says is due is made, and so is what any answer says', async () => {
  const { world, bob, conversationId } = await pair();
  makeDue(world, conversationId);
  world.rotationsDue.push(conversationId);
  const first = next(bob, 'rotated');
  await bob.attach();
  expect(await first).toMatchObject({ epoch: 2n });
  makeDue(world, conversationId);
  const second = next(bob, 'rotated');
  await bob.getConversation(conversationId);
  expect(await second).toMatchObject({ epoch: 3n });
  await bob.close();
});

test('a rotation that another device is asked for is left to it until its time is over', async () => {
  const clock = new FakeClock();
  const { world, bob, conversationId } = await pair({ clock });
  makeDue(world, conversationId);
  world.keys.asking = { userId: 'alice', deviceId: 'laptop' };
  const askedUntil = timestampFromMs(clock.now().getTime() + 60_000);
  let looks = 0;
  const looked = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  world.after.set('getRotation', ((answer: { askedUntil?: unknown }) => {
    answer.askedUntil = askedUntil;
    looked[looks]?.resolve();
    looks += 1;
  }) as never);
  await bob.attach();
  await bob.getConversation(conversationId);
  clock.advance(0);
  await looked[0]?.promise;
  const rotated = next(bob, 'rotated');
  expect(world.count('rotateSession')).toBe(0);
  // It takes a moment until the answer has been read; time stands still meanwhile.
  const moving = setInterval(() => clock.advance(30_000), 1);
  expect(await rotated).toMatchObject({ epoch: 2n });
  clearInterval(moving);
  expect(looks).toBeGreaterThanOrEqual(2);
  await bob.close();
});

test('losing the race is no failure: the winner’s session is opened', async () => {
  const { world, alice, bob, conversationId } = await pair();
  await bob.attach();
  const faults: unknown[] = [];
  bob.on('fault', (fault) => faults.push(fault));
  let won = '';
  world.before.set('rotateSession', (async (_: unknown, { userId }: { userId: string }) => {
    if (userId !== 'bob') return;
    world.before.delete('rotateSession');
    won = (await alice.rotate(conversationId)).sessionId;
  }) as never);
  const opened = new Promise<void>((resolve) =>
    world.after.set('getInitialSession', ((answer: { sessionId: string }) => {
      if (answer.sessionId === won) resolve();
    }) as never),
  );
  world.keys.askRotation(conversationId, bobsLaptop);
  await opened;
  await bob.close();
  expect(faults).toEqual([]);
  expect(world.conversation(conversationId).epoch).toBe(2n);
  expect(world.keys.declinedRotations).toEqual([]);
});

test('a server that wants others sealed to than the verified lists have gets no session, and is told so', async () => {
  const { world, bob, conversationId } = await pair();
  await bob.attach();
  world.keys.recipients = (all) => [...all, { userId: 'alice', deviceId: 'phantom' }];
  const outcome = Promise.race([next(bob, 'fault'), next(bob, 'rotated')]);
  world.keys.askRotation(conversationId, bobsLaptop);
  expect(await outcome).toMatchObject({ during: 'rotate when asked', error: { problem: 'roster' } });
  expect(world.count('rotateSession')).toBe(0);
  expect(world.keys.declinedRotations).toEqual([{ by: 'bob laptop', conversationId }]);
  await bob.close();
});

test('asked twice, a device rotates once', async () => {
  const { world, bob, conversationId } = await pair();
  await bob.attach();
  const rotated = next(bob, 'rotated');
  world.keys.askRotation(conversationId, bobsLaptop);
  world.keys.askRotation(conversationId, bobsLaptop);
  await rotated;
  await bob.close();
  expect(world.conversation(conversationId).epoch).toBe(2n);
});

test('with autoRotate off nothing is rotated', async () => {
  const { world, bob, conversationId } = await pair({ autoRotate: false });
  await bob.attach();
  world.keys.askRotation(conversationId, bobsLaptop);
  await bob.getConversation(conversationId);
  await bob.close();
  expect(world.count('getRotation')).toBe(0);
  expect(world.conversation(conversationId).epoch).toBe(1n);
});
