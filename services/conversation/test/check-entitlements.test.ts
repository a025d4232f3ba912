import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createdBy, type Harness, refusalOf, rotatedBy, rotation, startHarness, type TestUser } from './harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness();
}, 120_000);
afterAll(() => harness?.[Symbol.asyncDispose]());

describe('entitlements to many sessions', () => {
  it('are what each alone would be told as, in the order asked', async () => {
    const [alice, bob, carol] = (await Promise.all([1, 2, 3].map(() => harness.user()))) as [
      TestUser,
      TestUser,
      TestUser,
    ];
    const first = await createdBy(harness, alice.device, [bob]);
    const { request } = rotation(harness, alice.device, first.conversation);
    const { conversation } = await alice.device.client.rotateSession(request);
    if (!conversation) throw new Error('no conversation in the answer');
    await rotatedBy(harness, bob.device, conversation);
    const other = await createdBy(harness, alice.device, [carol]);
    const sessionOf = ({ conversationId, sessionId }: { conversationId: string; sessionId: string }) => ({
      conversationId,
      sessionId,
    });
    const userIds = [carol.userId, alice.userId, bob.userId];
    const checks = [
      { ...sessionOf(other.session), userIds },
      { conversationId: randomUUID(), sessionId: 'session_1', userIds: [bob.userId] },
      { ...sessionOf(conversation), userIds },
      { ...sessionOf(first.session), userIds: [bob.userId, carol.userId] },
      { conversationId: conversation.conversationId, sessionId: 'never-made', userIds },
    ];
    const { answers } = await harness.services.checkEntitlements({ checks });
    const alone = await Promise.all(checks.map((check) => harness.services.checkEntitlement(check)));
    expect(answers).toEqual(alone);
    expect(answers.map(({ entitlements }) => entitlements.map(({ entitled }) => entitled))).toEqual([
      [true, true, false],
      [false],
      [false, true, true],
      [true, false],
      [false, false, false],
    ]);
  });

  it('are refused for a session that is named twice, and for more users than one call may name', async () => {
    const check = { conversationId: randomUUID(), sessionId: 's', userIds: ['a'] };
    const twice = await refusalOf(harness.services.checkEntitlements({ checks: [check, { ...check }] }));
    expect(twice).toMatchObject({ reason: 'INVALID_FIELD', fields: [{ field: 'checks[1]' }] });
    const userIds = Array.from({ length: 1000 }, (_, n) => `user-${n}`);
    const checks = Array.from({ length: 11 }, (_, n) => ({ ...check, sessionId: `s${n}`, userIds }));
    expect(await refusalOf(harness.services.checkEntitlements({ checks }))).toMatchObject({
      reason: 'LIMIT_EXCEEDED',
      metadata: { limit: '10000' },
    });
  });
});
