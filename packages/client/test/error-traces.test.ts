import { expect, test } from 'vitest';
import { KeyMissError, RefusalError, SessionRefusedError } from '../src/errors.ts';
import { refusalOf } from '../src/key-refusal.ts';
import { firstDevice } from './people.ts';
import { World } from './world.ts';

const traceId = expect.stringMatching(/^[0-9a-f]{32}$/);

async function conversation() {
  const world = new World();
  const [alice, bob] = [await firstDevice(world, 'alice'), await firstDevice(world, 'bob')];
  const { conversationId, sessionId } = await alice.createConversation({ kind: 'direct', members: ['bob'] });
  return { world, alice, bob, conversationId, sessionId, session: world.session(sessionId).session };
}

test('a session that the device refuses leads to the trace in which it was read', async () => {
  const { bob, conversationId, sessionId, session } = await conversation();
  if (session.signedHeader) session.signedHeader.signature = new Uint8Array(64).fill(1);
  const refused = await bob.openSession(conversationId, sessionId).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(SessionRefusedError);
  expect(refused).toMatchObject({ problem: 'header', traceId });
});

test('so does an envelope that is wrong', async () => {
  const { bob, conversationId, sessionId, session } = await conversation();
  for (const envelope of session.envelopes)
    if (envelope.recipient?.userId === 'bob') envelope.ciphertext[0] = (envelope.ciphertext[0] ?? 0) ^ 1;
  const missed = await bob.openSession(conversationId, sessionId, { recover: false }).catch((error: unknown) => error);
  expect(missed).toBeInstanceOf(KeyMissError);
  expect(missed).toMatchObject({ cause: 'ENVELOPE_WRONG', traceId });
});

test('one item of a call with many that is refused has the trace of the call, and its own where it says one', () => {
  const refused = { reason: 'NOT_OFFERED', message: 'no', metadata: {}, retryAfterMs: 0, miss: undefined };
  const told = refusalOf(refused as never, 'c'.repeat(32));
  expect(told).toBeInstanceOf(RefusalError);
  expect(told.traceId).toBe('c'.repeat(32));
  expect(refusalOf({ ...refused, miss: { traceId: 'd'.repeat(32) } } as never, 'c'.repeat(32)).traceId).toBe(
    'd'.repeat(32),
  );
});
