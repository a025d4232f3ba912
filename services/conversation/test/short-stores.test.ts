import { afterAll, beforeAll, expect, it } from 'vitest';
import { creation, type Harness, refusalOf, startHarness } from './harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness();
}, 120_000);
afterAll(() => harness?.[Symbol.asyncDispose]());

it('a session that was stored with fewer envelopes than were sent is never committed', async () => {
  const [alice, bob] = [await harness.user(), await harness.user()];
  const { request, session } = creation(harness, alice.device, [bob]);
  // What a rolled-back build of the service session would do: write one envelope less, and report just that.
  harness.beforeStore = async ({ session: upload }) => {
    upload?.envelopes.pop();
  };
  expect(await refusalOf(alice.device.client.createConversation(request))).toMatchObject({ reason: 'INTERNAL_FAULT' });
  const { conversationId } = session;
  expect(await refusalOf(alice.device.client.getConversation({ conversationId }))).toMatchObject({
    reason: 'NOT_FOUND_OR_NOT_PERMITTED',
  });
  expect(await harness.query('SELECT 1 FROM epochs WHERE conversation_id = $1::uuid', conversationId)).toEqual([]);
});
