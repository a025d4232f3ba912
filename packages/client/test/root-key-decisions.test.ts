import { KeyRequestKind } from '@keytrail/contracts';
import { expect, test } from 'vitest';
import { DeviceLogWriter } from '../../crypto/test/device-log-writer.ts';
import { acceptSignedRootKeyChanges, memoryKeyStore, type RootKeyPolicy } from '../src/index.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

/** Alice, under a policy, and bob; `former` is the root key that she pinned. */
async function acquainted(onChange: RootKeyPolicy['onChange']) {
  const world = new World();
  const alice = await firstDevice(world, 'alice', 'laptop', { rootKeyPolicy: { onChange } });
  const bob = await firstDevice(world, 'bob');
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  const former = (await alice.rootKeyOf('bob')) ?? new Uint8Array();
  return { world, alice, bob, conversationId, former };
}

test("a person's decision outlives what a policy accepted before", async () => {
  const answers: ('accept' | 'refuse')[] = ['accept', 'refuse'];
  const { world, alice, bob, conversationId, former } = await acquainted(() => answers.shift() ?? 'refuse');
  await bob.changeRootKey();
  const { sessionId, withheld } = await alice.rotate(conversationId);
  expect(withheld).toEqual([]);
  await alice.acceptRootKey('bob', former);
  await alice.attach();
  const declined = Promise.race([next(alice, 'offerDeclined'), next(alice, 'offerAnswered').then(() => undefined)]);
  world.openRequest({ userId: 'bob', deviceId: 'laptop' }, conversationId, sessionId, KeyRequestKind.REWRAP);
  expect(await declined).toMatchObject({ reason: 'ROOT_KEY_CHANGED' });
  await alice.close();
  expect(await alice.rootKeyOf('bob')).toEqual(former);
});

test('what a policy accepts late does not undo what a person accepted meanwhile', async () => {
  const asked = Promise.withResolvers<void>();
  const answered = Promise.withResolvers<'accept'>();
  const answers = [answered.promise];
  const { alice, bob, conversationId } = await acquainted(() => {
    asked.resolve();
    return answers.shift() ?? 'refuse';
  });
  await bob.changeRootKey();
  const rotated = alice.rotate(conversationId);
  await asked.promise;
  const compared = new Uint8Array(32).fill(5);
  await alice.acceptRootKey('bob', compared);
  answered.resolve('accept');
  await rotated.catch(() => {});
  expect(await alice.rootKeyOf('bob')).toEqual(compared);
});

test("a change of the own user's root key is accepted by no policy", async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const phone = await approvedDevice(world, alice, 'phone', { rootKeyPolicy: acceptSignedRootKeyChanges });
  const former = await phone.rootKeyOf('alice');
  await alice.changeRootKey();
  await expect(phone.createConversation({ kind: 'group', members: [] })).rejects.toThrow('session refused');
  expect(await phone.rootKeyOf('alice')).toEqual(former);
});

test('the root key of a log is pinned though the power went off in between', async () => {
  const world = new World();
  const keyStore = memoryKeyStore();
  const bob = await firstDevice(world, 'bob');
  await firstDevice(world, 'alice', 'laptop', { keyStore });
  for (const step of ['pinFirst', 'saveDeviceLog'] as const) {
    const failing = {
      ...keyStore,
      [step]: async () => {
        throw new Error('no power');
      },
    };
    const failed = clientOf(world, 'alice', 'laptop', { keyStore: failing });
    await expect(failed.createConversation({ kind: 'direct', members: ['bob'] })).rejects.toThrow('no power');
  }
  const alice = clientOf(world, 'alice', 'laptop', { keyStore });
  expect((await alice.createConversation({ kind: 'direct', members: ['bob'] })).withheld).toEqual([]);
  expect(await alice.rootKeyOf('bob')).toEqual(await bob.rootKeyOf('bob'));
});

test('after a server was restored, a log is forgotten on purpose only, and the pinned root key stays', async () => {
  const { world, alice, bob, conversationId, former } = await acquainted(() => 'accept');
  await approvedDevice(world, bob, 'phone');
  await alice.rotate(conversationId);
  const restored = new DeviceLogWriter('bob');
  const [first] = world.identities.logOf('bob').entries;
  if (first) restored.write(first);
  world.identities.logs.set('bob', restored);
  world.devices.set('bob', (world.devices.get('bob') ?? []).slice(0, 1));
  await expect(alice.rotate(conversationId)).rejects.toMatchObject({ problem: 'rolled-back' });
  await alice.forgetDeviceLog('bob');
  const { withheld, sessionId } = await alice.rotate(conversationId);
  expect([withheld, [...world.session(sessionId).envelopes.keys()]]).toEqual([[], ['alice laptop', 'bob laptop']]);
  expect(await alice.rootKeyOf('bob')).toEqual(former);
});
