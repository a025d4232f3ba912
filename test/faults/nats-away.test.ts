import { createClient } from '@connectrpc/connect';
import { SessionService } from '@keytrail/contracts';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { startWorld, type World } from '../e2e/world.ts';
import { type Chat, keyArrives, startChats } from './chats.ts';
import { everythingIsDelivered, publishedSequences, rowsOf, unready } from './delivery.ts';
import { startLoad } from './load.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({
    name: 'test-nats-away',
    own: true,
    replicas: { session: 2, conversation: 2 },
    env: {
      KEYTRAIL_KEY_REQUEST_OFFER_MS: '1000',
      KEYTRAIL_KEY_REQUEST_WAIT_MS: '500',
      KEYTRAIL_KEY_REQUEST_ATTEMPTS: '12',
      KEYTRAIL_KEY_REQUEST_SWEEP_MS: '50',
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

function readsHit({ bobId, conversationId, sessionId }: Chat) {
  const session = createClient(SessionService, world.transportsOf(bobId, 'phone').session);
  return session.getInitialSession({ conversationId, sessionId });
}

function endedRequests() {
  return rowsOf(
    world.constellation,
    'session',
    'SELECT state, ended_because FROM key_requests WHERE ended_at IS NOT NULL',
    [],
  );
}

/** The outage lasts longer than all attempts of a request would. */
async function requestsAreOlderThan(ms: number): Promise<void> {
  const text = `SELECT 1 FROM key_requests WHERE requested_at > now() - $1 * interval '1 millisecond'`;
  await vi.waitFor(async () => expect(await rowsOf(world.constellation, 'session', text, [ms])).toEqual([]), {
    timeout: 30_000,
    interval: 200,
  });
}

test('while NATS is away writes are acknowledged and hits served; when it is back all flows, in order, and nothing is lost', async () => {
  const { constellation } = world;
  const chats = await startChats(world, 4);
  await Promise.all(chats.map(({ tablet }) => tablet.attach()));
  const messages = startLoad(chats.length, async (worker, call) => {
    const { alice, conversationId } = chats[worker] as Chat;
    const text = `message ${call}`;
    return { text, sequence: (await alice.send(conversationId, text)).sequence };
  });
  await messages.advances(5);

  await constellation.nats.kill('SIGKILL');
  const arrivals = chats.map(keyArrives);
  for (const { tablet, conversationId, sessionId } of chats)
    expect((await tablet.requestKey(conversationId, sessionId)).state).toBe('OFFERED');
  const [first, second] = chats as [Chat, Chat];
  const { conversationId: madeMeanwhile } = await first.alice.createConversation({
    kind: 'group',
    members: [second.aliceId],
  });
  await messages.advances(40);
  await requestsAreOlderThan(13_000);
  expect(await endedRequests()).toEqual([]);
  expect((await readsHit(first)).sessionId).toBe(first.sessionId);
  expect(await unready(constellation)).toEqual([]);

  await constellation.nats.restart?.();
  await Promise.all(arrivals);
  await messages.advances(10);
  await messages.stop();
  expect(messages.failures).toEqual([]);
  await everythingIsDelivered(constellation);

  const published = await publishedSequences(constellation);
  for (const [worker, { conversationId, bob, tablet }] of chats.entries()) {
    const acknowledged = messages.acknowledged[worker] ?? [];
    expect(published.get(conversationId)).toEqual(acknowledged.map((_, place) => BigInt(place + 1)));
    expect(await bob.messages(conversationId)).toMatchObject(acknowledged);
    expect(await tablet.messages(conversationId)).toMatchObject(acknowledged);
  }
  expect((await second.alice.getConversation(madeMeanwhile)).members).toHaveLength(2);
}, 180_000);
