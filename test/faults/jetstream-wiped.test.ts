import { afterAll, beforeAll, expect, test } from 'vitest';
import { startWorld, type World } from '../e2e/world.ts';
import { type Chat, keyArrives, startChats } from './chats.ts';
import { everythingIsDelivered } from './delivery.ts';
import { startLoad } from './load.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({
    name: 'test-jetstream-wiped',
    own: true,
    replicas: { session: 2 },
    env: {
      KEYTRAIL_KEY_REQUEST_OFFER_MS: '500',
      KEYTRAIL_KEY_REQUEST_WAIT_MS: '500',
      KEYTRAIL_KEY_REQUEST_SWEEP_MS: '50',
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

test('when JetStream has lost its store, streams and consumers are made again and every open key request gets through', async () => {
  const { nats } = world.constellation;
  const chats = await startChats(world, 6);
  const arrivals = Promise.all(chats.map(keyArrives));
  await Promise.all(chats.map(({ tablet }) => tablet.attach()));
  // Of three nobody is online when the key is asked for; their holders come back while nothing can tell of it.
  const waiting = chats.slice(0, 3);
  await Promise.all(waiting.flatMap(({ alice, bob }) => [alice.detach(), bob.detach()]));
  for (const { tablet, conversationId, sessionId } of waiting)
    expect((await tablet.requestKey(conversationId, sessionId)).recovery).toBe('PENDING_NO_HOLDER_ONLINE');
  const messages = startLoad(chats.length, (worker, call) => {
    const { alice, conversationId } = chats[worker] as Chat;
    return alice.send(conversationId, `message ${call}`);
  });
  await messages.advances(3);

  // The others ask in the very moment: what is published and not yet handled is lost with the store.
  const asked = chats
    .slice(3)
    .map(({ tablet, conversationId, sessionId }) => tablet.requestKey(conversationId, sessionId));
  await nats.kill('SIGKILL');
  await Promise.all(asked);
  await Promise.all(waiting.flatMap(({ alice, bob }) => [alice.attach(), bob.attach()]));
  await messages.advances(3);
  await nats.restart?.({ empty: true });

  await arrivals;
  await messages.advances(3);
  await messages.stop();
  expect(messages.failures).toEqual([]);
  await everythingIsDelivered(world.constellation);
  for (const { tablet, conversationId } of chats)
    for (const message of await tablet.messages(conversationId)) expect(message).not.toHaveProperty('error');
}, 180_000);
