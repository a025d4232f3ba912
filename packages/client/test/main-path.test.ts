import { RotationDueReason } from '@keytrail/contracts';
import { expect, test } from 'vitest';
import { KeyMissError, RefusalError, RotationLost } from '../src/index.ts';
import { approvedDevice, clientOf, firstDevice, next } from './people.ts';
import { World } from './world.ts';

test('two users register, one creates a conversation and sends, the other reads', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, epoch, envelopesWritten } = await alice.createConversation({
    kind: 'direct',
    members: ['bob'],
  });
  expect({ epoch, envelopesWritten }).toEqual({ epoch: 1n, envelopesWritten: 2 });
  await alice.send(conversationId, 'hello');
  await bob.send(conversationId, 'hello back');
  const read = await bob.messages(conversationId);
  expect(read.map((message) => 'text' in message && [message.sequence, message.sender.userId, message.text])).toEqual([
    [1n, 'alice', 'hello'],
    [2n, 'bob', 'hello back'],
  ]);
});

test('the initiator comes back to a session from its own envelope', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'group', members: [] });
  const own = world.session(sessionId).envelopes.get('alice laptop');
  expect(own).toHaveLength(1);
  expect(own?.[0]?.oneTimePrekeyId).toBe(0);
  expect((await alice.openSession(conversationId)).sealer).toEqual({ userId: 'alice', deviceId: 'laptop' });
});

test('a device that was approved later misses the key, and gets it from a holder that is online', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await alice.send(conversationId, 'hello');
  const phone = await approvedDevice(world, bob, 'phone');

  const miss = await phone.openSession(conversationId, sessionId, { recover: false }).catch((error) => error);
  expect(miss).toBeInstanceOf(KeyMissError);
  expect(miss).toMatchObject({
    cause: 'DEVICE_ADDED_AFTER_SESSION',
    recovery: 'REQUESTABLE',
    remedy: 'REQUEST_KEY',
    traceId: '0af7651916cd43dd8448eb211c80319c',
  });

  await Promise.all([bob.attach(), phone.attach()]);
  const answered = next(bob, 'offerAnswered');
  const delivered = next(phone, 'keyDelivered');
  const opened = await phone.openSession(conversationId, sessionId);
  expect(opened).toMatchObject({ attempt: 1, origin: 'recovered', sealer: { userId: 'bob', deviceId: 'laptop' } });
  expect(await answered).toMatchObject({ requester: { userId: 'bob', deviceId: 'phone' }, sessionId });
  expect(await delivered).toMatchObject({ sessionId, attempt: 1 });
  const [message] = await phone.messages(conversationId);
  expect(message).toMatchObject({ text: 'hello' });
  await Promise.all([bob.close(), phone.close()]);
  expect(world.acknowledged).toEqual([{ by: 'bob phone', sessionId, attempt: 1 }]);
});

test('the miss, the request, the answer and the second read are one trace', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await bob.openSession(conversationId);
  const phone = await approvedDevice(world, bob, 'phone');
  await Promise.all([bob.attach(), phone.attach()]);
  world.traceparents.length = 0;
  const { traceId } = await phone.openSession(conversationId, sessionId);
  await phone.close();
  const tracesOf = (method: string) =>
    world.traceparents.filter((each) => each.method === method).map(({ traceparent }) => traceparent.split('-')[1]);
  expect(tracesOf('getInitialSession')).toEqual([traceId, traceId]);
  expect(tracesOf('requestKey')).toEqual([traceId]);
  expect(tracesOf('fulfillKeyRequest')).toEqual([traceId]);
  expect(tracesOf('ackKey')).toEqual([traceId]);
});

test('a request without a holder waits, and messages say so at once', async () => {
  const world = new World();
  world.holdersOnline = false;
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  await alice.send(conversationId, 'hello');
  const phone = await approvedDevice(world, bob, 'phone');
  const [message] = await phone.messages(conversationId);
  expect(message).toMatchObject({
    sequence: 1n,
    error: { cause: 'DEVICE_ADDED_AFTER_SESSION', recovery: 'PENDING_NO_HOLDER_ONLINE' },
  });
  const { recovery, state, keyRequest } = await phone.requestKey(conversationId, sessionId);
  expect({ recovery, state }).toEqual({ recovery: 'PENDING_NO_HOLDER_ONLINE', state: 'WAITING_FOR_HOLDER' });
  expect(world.keyRequests.map(({ keyRequestId }) => keyRequestId)).toEqual([keyRequest?.keyRequestId]);

  await phone.attach();
  const delivered = next(phone, 'keyDelivered');
  // The holder attaches: it pulls what is offered to it, without a hint.
  for (const request of world.keyRequests) world.offer(request);
  await alice.attach();
  await delivered;
  expect(await phone.messages(conversationId)).toMatchObject([{ text: 'hello' }]);
  await Promise.all([alice.close(), phone.close()]);
});

test('a key that was delivered while the device was away is collected when it attaches', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  const phone = await approvedDevice(world, bob, 'phone');
  await alice.attach();
  const answered = next(alice, 'offerAnswered');
  await phone.requestKey(conversationId, sessionId);
  await answered;
  const delivered = next(phone, 'keyDelivered');
  await phone.attach();
  expect(await delivered).toMatchObject({ sessionId, sealer: { userId: 'alice', deviceId: 'laptop' } });
  expect(await phone.openSession(conversationId, sessionId)).toMatchObject({ origin: 'store' });
  await Promise.all([alice.close(), phone.close()]);
});

test('a rotation makes the next epoch, and one that comes second loses and says to whom', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  const meet = Promise.withResolvers<void>();
  let waiting = 0;
  world.before.set('rotateSession', async () => {
    waiting += 1;
    if (waiting === 2) meet.resolve();
    await meet.promise;
  });
  const outcomes = await Promise.allSettled([alice.rotate(conversationId), bob.rotate(conversationId)]);
  const won = outcomes.find((outcome) => outcome.status === 'fulfilled');
  const lost = outcomes.find((outcome) => outcome.status === 'rejected');
  expect(won?.value.epoch).toBe(2n);
  expect(lost?.reason).toBeInstanceOf(RotationLost);
  expect(lost?.reason.winner).toEqual({ epoch: 2n, sessionId: won?.value.sessionId });
  await alice.send(conversationId, 'under the new key');
  expect(await bob.messages(conversationId)).toMatchObject([{ text: 'under the new key', epoch: 2n }]);
});

test('later envelopes between two devices spend no one-time prekeys', async () => {
  const world = new World();
  const [alice] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  expect(world.pools.get('bob laptop')?.oneTime).toHaveLength(4);
  const { sessionId } = await alice.rotate(conversationId);
  expect(world.pools.get('bob laptop')?.oneTime).toHaveLength(4);
  expect(world.session(sessionId).envelopes.get('bob laptop')?.[0]?.oneTimePrekeyId).toBe(0);
  expect(world.claims).toHaveLength(1);
});

test('sending after a removal rotates first, and encrypts anew', async () => {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  await firstDevice(world, 'carol');
  const { conversationId } = await alice.createConversation({ kind: 'group', members: ['bob', 'carol'] });
  await alice.send(conversationId, 'to three');
  const changed = await alice.removeMembers(conversationId, ['carol']);
  expect(changed.rotationDue).toBe(RotationDueReason.MEMBER_REMOVED);
  expect(await bob.send(conversationId, 'to two')).toMatchObject({ epoch: 2n });
  expect(await alice.messages(conversationId)).toMatchObject([{ text: 'to three' }, { text: 'to two', epoch: 2n }]);
  expect(world.session(world.conversation(conversationId).sessionId).envelopes.has('carol laptop')).toBe(false);
});

test('what a service refuses keeps its reason', async () => {
  const world = new World();
  const alice = await firstDevice(world, 'alice');
  const error = await alice.send('0c2f5c1e-4f5e-8a3b-9d2c-6b7a8f9e0d1c', 'hello').catch((thrown) => thrown);
  expect(error).toBeInstanceOf(RefusalError);
  expect(error.reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
});

test('a device that has not been registered is told so', async () => {
  const world = new World();
  const eve = clientOf(world, 'eve', 'laptop');
  await expect(eve.attach()).rejects.toThrow('has not been registered');
});
