import { randomUUID } from 'node:crypto';
import { Code, createClient } from '@connectrpc/connect';
import { IdentityKeysService } from '@keytrail/contracts';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { someone, startWorld, type World } from '../e2e/world.ts';
import { type Chat, startChats } from './chats.ts';
import { everythingIsDelivered, rowsOf, unready } from './delivery.ts';
import { startLoad } from './load.ts';

let world: World;
beforeAll(async () => {
  const many = '1000000';
  world = await startWorld({
    name: 'test-postgres-stopped',
    own: true,
    fsync: true,
    env: {
      KEYTRAIL_CLAIMS_PER_CALLER: many,
      KEYTRAIL_CLAIMS_PER_CALLER_BURST: many,
      KEYTRAIL_CLAIMS_PER_TARGET: many,
      KEYTRAIL_CLAIMS_PER_TARGET_BURST: many,
      KEYTRAIL_CLAIMS_PER_PAIR: many,
      KEYTRAIL_CLAIMS_PER_PAIR_BURST: many,
      KEYTRAIL_KEY_REQUEST_OFFER_MS: '500',
      KEYTRAIL_KEY_REQUEST_WAIT_MS: '500',
      KEYTRAIL_KEY_REQUEST_SWEEP_MS: '50',
    },
  });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

/** Claims from each target in turn; the same claim again until it is answered, as a device does whose call was not. */
function claimant(caller: string, targets: readonly string[]) {
  const { claimPrekeyBundles } = createClient(IdentityKeysService, world.transportsOf(caller, 'phone').identityKeys);
  let unanswered: { claimId: string; devices: { userId: string; deviceId: string }[] } | undefined;
  const send = async (claim: NonNullable<typeof unanswered>) => {
    const { results } = await claimPrekeyBundles(claim);
    return results[0]?.bundle?.oneTimePrekey?.keyId;
  };
  return {
    async next(call: number) {
      unanswered ??= {
        claimId: randomUUID(),
        devices: [{ userId: targets[call % targets.length] as string, deviceId: 'phone' }],
      };
      const claim = unanswered;
      const keyId = await send(claim);
      unanswered = undefined;
      return { claim, keyId };
    },
    again: send,
  };
}

test('no write that PostgreSQL acknowledged is lost when it is killed under load, and the services go on by themselves', async () => {
  const { constellation } = world;
  const chats = await startChats(world, 3);
  const [first, second] = chats as [Chat, Chat];
  const pids = constellation.replicas.map(({ process }) => process.pid);

  const messages = startLoad(chats.length, async (worker, call) => {
    const { alice, conversationId } = chats[worker] as Chat;
    const text = `message ${worker} ${call}`;
    return { text, sequence: (await alice.send(conversationId, text)).sequence };
  });
  const requests = startLoad(1, async () => {
    const { conversationId, sessionId } = await first.bob.createConversation({
      kind: 'group',
      members: [second.bobId],
    });
    const { keyRequest } = await second.bob.requestKey(conversationId, sessionId, 'REWRAP');
    return { conversationId, sessionId, keyRequestId: keyRequest?.keyRequestId };
  });
  const registrations = startLoad(1, async () => {
    const user = someone('carol');
    await world.device(user, 'phone', { prekeys: 5 }).register();
    return user;
  });
  const targets = chats.map(({ bobId }) => bobId);
  const claimants = [first, second].map(({ aliceId }) => claimant(aliceId, targets));
  const claims = startLoad(claimants.length, (worker, call) =>
    (claimants[worker] as (typeof claimants)[number]).next(call),
  );
  const loads = [messages, requests, registrations, claims];
  await Promise.all(loads.map((load) => load.advances(3)));

  const felt = Promise.all([messages.fails(1), claims.fails(1)]);
  await constellation.postgres.kill('SIGKILL');
  await felt;
  await constellation.postgres.restart?.();
  await Promise.all(loads.map((load) => load.advances(3)));
  await Promise.all(loads.map((load) => load.stop()));
  await vi.waitFor(async () => expect(await unready(constellation)).toEqual([]), { timeout: 30_000, interval: 100 });
  expect(constellation.replicas.map(({ process }) => process.pid)).toEqual(pids);
  const failures = loads.flatMap((load) => load.failures);
  const codes = new Set(failures.map((error) => (error as { code?: Code }).code ?? String(error)));
  expect([Code.Unavailable, Code.DeadlineExceeded]).toEqual(expect.arrayContaining([...codes]));

  for (const [worker, { conversationId, bob }] of chats.entries()) {
    const log = await bob.messages(conversationId);
    expect(log.map(({ sequence }) => sequence)).toEqual(log.map((_, place) => BigInt(place + 1)));
    for (const { sequence, text } of messages.acknowledged[worker] ?? [])
      expect(log[Number(sequence) - 1]).toMatchObject({ text });
  }
  const registered = registrations.acknowledged.flat();
  expect(
    await rowsOf(constellation, 'identity-keys', 'SELECT user_id FROM devices WHERE user_id = ANY ($1)', [registered]),
  ).toHaveLength(registered.length);
  const asked = requests.acknowledged.flat();
  expect(
    await rowsOf(constellation, 'conversation', 'SELECT 1 FROM epochs WHERE session_id = ANY ($1)', [
      asked.map(({ sessionId }) => sessionId),
    ]),
  ).toHaveLength(asked.length);
  await vi.waitFor(
    async () => {
      const states = await rowsOf(
        constellation,
        'session',
        'SELECT state FROM key_requests WHERE key_request_id = ANY ($1)',
        [asked.map(({ keyRequestId }) => keyRequestId)],
      );
      expect(states).toEqual(asked.map(() => ({ state: 'FULFILLED' })));
    },
    { timeout: 60_000, interval: 100 },
  );

  const taken: string[] = [];
  for (const [worker, answered] of claims.acknowledged.entries())
    for (const { claim, keyId } of answered) {
      expect(await claimants[worker]?.again(claim)).toBe(keyId);
      if (keyId !== undefined) taken.push(`${claim.devices[0]?.userId} ${keyId}`);
    }
  expect(taken.length).toBeGreaterThan(0);
  expect(new Set(taken).size).toBe(taken.length);
  await everythingIsDelivered(constellation);
}, 180_000);
