import { expect, test } from 'vitest';
import { SessionRefusedError } from '../src/index.ts';
import { approvedDevice, firstDevice } from './people.ts';
import { World } from './world.ts';

/** Bob's phone came after Alice made the session: it gets the key from Bob's laptop, and who asked for devices is written down. */
async function laterDevice() {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  const phone = await approvedDevice(world, bob, 'phone');
  await Promise.all([bob.attach(), phone.attach()]);
  // Who signed rosters is looked up once, with the first conversation that the device sees of them.
  const before = await alice.createConversation({ kind: 'group', members: ['bob'] });
  await phone.openSession(before.conversationId, before.sessionId);
  const lookedUp: string[] = [];
  world.before.set('getDevices', (_request: unknown, { userId, deviceId }) => {
    lookedUp.push(`${userId} ${deviceId}`);
  });
  return { world, bob, phone, conversationId, sessionId, lookedUp };
}

test('what opens a session that another re-sealed comes in the one read', async () => {
  const { bob, phone, conversationId, sessionId, lookedUp } = await laterDevice();
  expect(await phone.openSession(conversationId, sessionId)).toMatchObject({
    origin: 'recovered',
    initiator: { userId: 'alice', deviceId: 'laptop' },
    sealer: { userId: 'bob', deviceId: 'laptop' },
  });
  expect(lookedUp).not.toContain('bob phone');
  await Promise.all([bob.close(), phone.close()]);
});

test("a certificate of the initiator's that is under another root key than the pinned one is not believed", async () => {
  const { world, bob, phone, conversationId, sessionId } = await laterDevice();
  await phone.openSession(conversationId, sessionId);
  const { sessionId: next } = await bob.rotate(conversationId);
  const uploaded = world.session(next).session;
  const mallory = await firstDevice(world, 'mallory');
  const { certificate } = world.device('mallory', 'laptop');
  if (!certificate) throw new Error('no certificate');
  uploaded.initiatorCertificate = certificate;
  const refused = await phone.openSession(conversationId, next).catch((error) => error);
  expect(refused).toBeInstanceOf(SessionRefusedError);
  expect(refused.problem).toBe('root-key-changed');
  await Promise.all([bob.close(), phone.close(), mallory.close()]);
});
