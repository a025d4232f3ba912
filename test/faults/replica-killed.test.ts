import { afterAll, beforeAll, expect, test } from 'vitest';
import { startWorld, type World } from '../e2e/world.ts';
import { keyArrives, startChats } from './chats.ts';
import { everythingIsDelivered, rowsOf } from './delivery.ts';
import { startLoad } from './load.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({
    name: 'test-replica-killed',
    own: true,
    replicas: { session: 2, conversation: 2 },
    env: {
      KEYTRAIL_NATS_ACK_WAIT_MS: '2000',
      KEYTRAIL_KEY_REQUEST_OFFER_MS: '500',
      KEYTRAIL_KEY_REQUEST_WAIT_MS: '500',
      KEYTRAIL_KEY_REQUEST_SWEEP_MS: '50',
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

test('when one replica of session and one of conversation are killed at work, the others bring every request and every event to its end', async () => {
  const { constellation } = world;
  const chats = await startChats(world, 6);
  await Promise.all(chats.map(({ tablet }) => tablet.attach()));
  const arrivals = Promise.all(chats.map(keyArrives));
  const messages = startLoad(chats.length, async (worker, call) => {
    const { alice, conversationId } = chats[worker] as (typeof chats)[number];
    return alice.send(conversationId, `message ${call}`);
  });
  await messages.advances(3);
  const asked = Promise.all(
    chats.map(({ tablet, conversationId, sessionId }) => tablet.requestKey(conversationId, sessionId)),
  );
  const [session] = constellation.of('session');
  const [conversation] = constellation.of('conversation');
  // The first request is stored, the others are on their way.
  await waitForRequest();
  await Promise.all([session?.process.kill('SIGKILL'), conversation?.process.kill('SIGKILL')]);
  await asked;
  await arrivals;
  await messages.advances(5);
  await messages.stop();
  await everythingIsDelivered(constellation);
  expect(await rowsOf(constellation, 'session', 'SELECT DISTINCT state FROM key_requests')).toEqual([
    { state: 'FULFILLED' },
  ]);
  for (const { bob, conversationId } of chats) {
    const log = await bob.messages(conversationId);
    expect(log.map(({ sequence }) => sequence)).toEqual(log.map((_, place) => BigInt(place + 1)));
  }
}, 180_000);

async function waitForRequest(): Promise<void> {
  while ((await rowsOf(world.constellation, 'session', 'SELECT 1 FROM key_requests LIMIT 1')).length === 0);
}
