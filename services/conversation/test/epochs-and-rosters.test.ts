import { randomUUID } from 'node:crypto';
import { type Conversation, ConversationKind, HistoryPolicy, MemberRole, RotationDueReason } from '@keytrail/contracts';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  adding,
  createdBy,
  creation,
  gateAt,
  type Harness,
  message,
  refusalOf,
  removing,
  rotatedBy,
  rotation,
  startHarness,
  type TestDevice,
  type TestUser,
} from './harness.ts';

let harness: Harness;

beforeAll(async () => {
  harness = await startHarness();
}, 120_000);

afterEach(() => {
  harness.atFaultPoint = async () => {};
});

afterAll(() => harness?.[Symbol.asyncDispose]());

async function users(count: number): Promise<TestUser[]> {
  return Promise.all(Array.from({ length: count }, () => harness.user()));
}

async function group(count: number, historyPolicy: HistoryPolicy = HistoryPolicy.OWN_MEMBERSHIP) {
  const [alice, ...others] = (await users(count)) as [TestUser, ...TestUser[]];
  const { conversation, session } = await createdBy(harness, alice.device, others, { historyPolicy });
  return { alice, bob: (others[0] ?? alice).device, others, conversation, session };
}

async function add(by: TestDevice, conversation: Conversation, ...added: readonly { readonly userId: string }[]) {
  const members = added.map(({ userId }) => ({ userId, role: MemberRole.MEMBER }));
  const answer = await by.client.addMembers(adding(by, conversation, members));
  if (!answer.conversation) throw new Error('no conversation in the answer');
  return answer.conversation;
}

async function remove(by: TestDevice, conversation: Conversation, ...removed: readonly { readonly userId: string }[]) {
  const userIds = removed.map(({ userId }) => userId);
  const answer = await by.client.removeMembers(removing(by, conversation, userIds));
  if (!answer.conversation) throw new Error('no conversation in the answer');
  return answer.conversation;
}

async function entitled(
  conversation: Conversation,
  sessionId: string,
  ...asked: readonly { readonly userId: string }[]
) {
  const { conversationId } = conversation;
  const userIds = asked.map(({ userId }) => userId);
  return harness.services.checkEntitlement({ conversationId, sessionId, userIds });
}

describe('a rotation', () => {
  it('makes the next epoch, and the same request gets the same answer', async () => {
    const { alice, bob, conversation } = await group(2);
    const { request, session } = rotation(harness, alice.device, conversation);
    const first = await alice.device.client.rotateSession(request);
    expect(first.conversation).toMatchObject({ epoch: 2n, sessionId: session.sessionId, rosterVersion: 1n });
    expect(first.conversation?.headerHash).toEqual(session.headerHash);
    await rotatedBy(harness, bob, first.conversation as Conversation);
    expect(await alice.device.client.rotateSession(request)).toEqual(first);
  });

  it('has exactly one winner, and the losers are told which', async () => {
    const { alice, others, conversation } = await group(4);
    const gate = gateAt('conversation.before-commit');
    let waiting = 0;
    harness.atFaultPoint = async (point) => {
      if (point !== 'conversation.before-commit') return;
      waiting += 1;
      if (waiting === 4) gate.open();
      await gate.at(point);
    };
    const attempts = await Promise.allSettled(
      [alice, ...others].map(({ device }) =>
        device.client.rotateSession(rotation(harness, device, conversation).request),
      ),
    );
    const winners = attempts.flatMap((attempt) => (attempt.status === 'fulfilled' ? [attempt.value] : []));
    expect(winners).toHaveLength(1);
    for (const attempt of attempts) {
      if (attempt.status === 'fulfilled') continue;
      expect(await refusalOf(Promise.reject(attempt.reason))).toMatchObject({
        reason: 'EPOCH_CONFLICT',
        metadata: {
          current_epoch: '2',
          current_session_id: winners[0]?.conversation?.sessionId,
          current_roster_version: '1',
        },
      });
    }
    harness.atFaultPoint = async () => {};
    expect(await harness.reconcile()).toMatchObject({ aborted: 3 });
  });

  it('is refused when it is late, with the session that won', async () => {
    const { alice, bob, conversation } = await group(2);
    const late = rotation(harness, bob, conversation);
    const { session } = await rotatedBy(harness, alice.device, conversation);
    expect(await refusalOf(bob.client.rotateSession(late.request))).toMatchObject({
      reason: 'EPOCH_CONFLICT',
      metadata: { current_epoch: '2', current_session_id: session.sessionId },
    });
  });

  it('loses against a removal that commits first', async () => {
    const { alice, others, conversation } = await group(3);
    const [bob, carol] = others as [TestUser, TestUser];
    const gate = gateAt('conversation.before-commit');
    harness.atFaultPoint = gate.at;
    const rotating = refusalOf(bob.device.client.rotateSession(rotation(harness, bob.device, conversation).request));
    await gate.reached;
    const removed = await remove(alice.device, conversation, carol);
    gate.open();
    expect(await rotating).toMatchObject({
      reason: 'ROSTER_CONFLICT',
      metadata: { current_roster_version: String(removed.rosterVersion) },
    });
    harness.atFaultPoint = async () => {};
    const { conversation: rotated } = await rotatedBy(harness, bob.device, removed);
    expect(rotated).toMatchObject({ epoch: 2n, rotationDue: RotationDueReason.UNSPECIFIED });
  });

  it('must follow the header of the current session', async () => {
    const { alice, conversation } = await group(2);
    const { request } = rotation(harness, alice.device, conversation, { previousHeaderHash: new Uint8Array(32) });
    expect(await refusalOf(alice.device.client.rotateSession(request))).toMatchObject({
      reason: 'HEADER_MISMATCH',
      metadata: { field: 'previous_header_hash' },
    });
  });

  it('keeps the history policy of the conversation', async () => {
    const { alice, conversation } = await group(2);
    const { request } = rotation(harness, alice.device, conversation, { historyPolicy: HistoryPolicy.SHARED });
    expect(await refusalOf(alice.device.client.rotateSession(request))).toMatchObject({
      reason: 'HEADER_MISMATCH',
      metadata: { field: 'history_policy' },
    });
  });

  it('of an epoch cannot take a session id that another epoch has', async () => {
    const { alice, conversation } = await group(2);
    const { request } = rotation(harness, alice.device, conversation, { sessionId: conversation.sessionId });
    expect(await refusalOf(alice.device.client.rotateSession(request))).toMatchObject({ reason: 'SESSION_CONFLICT' });
  });

  it('becomes due when a member asks, once, and not for an epoch that is over', async () => {
    const { alice, bob, conversation } = await group(2);
    const { conversationId } = conversation;
    const ask = (expectedEpoch: bigint) =>
      bob.client.requestRotation({ requestId: randomUUID(), conversationId, expectedEpoch });
    expect((await ask(1n)).conversation?.rotationDue).toBe(RotationDueReason.REQUESTED);
    expect((await ask(1n)).conversation?.rotationDue).toBe(RotationDueReason.REQUESTED);
    await rotatedBy(harness, alice.device, conversation);
    expect((await ask(1n)).conversation).toMatchObject({ epoch: 2n, rotationDue: RotationDueReason.UNSPECIFIED });
    expect(await refusalOf(ask(9n))).toMatchObject({ reason: 'EPOCH_CONFLICT' });
  });
});

describe('a roster', () => {
  it('changes by compare-and-set on its version', async () => {
    const { alice, conversation } = await group(2);
    const [dave, erin] = (await users(2)) as [TestUser, TestUser];
    const outcomes = await Promise.allSettled([
      add(alice.device, conversation, dave),
      add(alice.device, conversation, erin),
    ]);
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    const [lost] = outcomes.filter((outcome) => outcome.status === 'rejected');
    expect(await refusalOf(Promise.reject(lost?.reason))).toMatchObject({
      reason: 'ROSTER_CONFLICT',
      metadata: { current_roster_version: '2' },
    });
  });

  it('lets a new member start with the epoch that a rotation makes', async () => {
    const { alice, conversation, session } = await group(2);
    const dave = await harness.user();
    const grown = await add(alice.device, conversation, dave);
    expect(grown).toMatchObject({ rotationDue: RotationDueReason.MEMBER_ADDED, rosterVersion: 2n });
    expect(grown.members.find(({ userId }) => userId === dave.userId)?.fromEpoch).toBe(2n);

    expect((await entitled(grown, session.sessionId, dave)).entitlements[0]).toMatchObject({
      entitled: false,
      memberNow: true,
      everMember: true,
    });
    expect(await refusalOf(dave.device.client.sendMessage(message(dave.device, session, 0n)))).toMatchObject({
      reason: 'ROTATION_REQUIRED',
      metadata: { current_epoch: '1', due_reason: 'MEMBER_ADDED' },
    });
    const { conversation: rotated } = await rotatedBy(harness, dave.device, grown);
    expect((await entitled(rotated, rotated.sessionId, dave)).entitlements[0]?.entitled).toBe(true);
    expect(rotated.rotationDue).toBe(RotationDueReason.UNSPECIFIED);
  });

  it('shares earlier epochs with a new member when the policy says so, and no rotation becomes due', async () => {
    const { alice, conversation, session } = await group(2, HistoryPolicy.SHARED);
    const dave = await harness.user();
    const { conversation: second } = await rotatedBy(harness, alice.device, conversation);
    const grown = await add(alice.device, second, dave);
    expect(grown.rotationDue).toBe(RotationDueReason.UNSPECIFIED);
    expect((await entitled(grown, session.sessionId, dave)).entitlements[0]?.entitled).toBe(true);
    expect((await entitled(grown, second.sessionId, dave)).entitlements[0]?.entitled).toBe(true);
    const removed = await remove(alice.device, grown, dave);
    const { conversation: third } = await rotatedBy(harness, alice.device, removed);
    expect((await entitled(third, session.sessionId, dave)).entitlements[0]?.entitled).toBe(true);
    expect((await entitled(third, third.sessionId, dave)).entitlements[0]?.entitled).toBe(false);
  });

  it('ends a membership with its epoch, refuses messages until the rotation, and knows both spans of who comes back', async () => {
    const { alice, others, conversation, session } = await group(3);
    const [bob, carol] = others as [TestUser, TestUser];
    const early = message(bob.device, session, 0n);
    await bob.device.client.sendMessage(early);
    const removed = await remove(alice.device, conversation, carol);
    expect(removed).toMatchObject({ rotationDue: RotationDueReason.MEMBER_REMOVED, rosterVersion: 2n });
    expect(await refusalOf(bob.device.client.sendMessage(message(bob.device, session, 1n)))).toMatchObject({
      reason: 'ROTATION_REQUIRED',
      metadata: { conversation_id: conversation.conversationId, current_epoch: '1', due_reason: 'MEMBER_REMOVED' },
    });
    expect((await bob.device.client.sendMessage(early)).sequence).toBe(1n);
    expect((await entitled(removed, session.sessionId, carol)).entitlements[0]).toMatchObject({
      entitled: true,
      memberNow: false,
      memberships: [{ fromEpoch: 1n, toEpoch: 1n }],
    });

    const { conversation: second, session: secondSession } = await rotatedBy(harness, bob.device, removed);
    expect(await refusalOf(bob.device.client.sendMessage(message(bob.device, session, 2n)))).toMatchObject({
      reason: 'ROTATION_REQUIRED',
      metadata: { current_epoch: '2' },
    });
    await bob.device.client.sendMessage(message(bob.device, secondSession, 0n));
    const back = await add(alice.device, second, carol);
    const { conversation: third } = await rotatedBy(harness, bob.device, back);
    const answers = await Promise.all(
      [conversation, second, third].map(({ sessionId }) => entitled(third, sessionId, carol)),
    );
    expect(answers.map(({ entitlements }) => entitlements[0]?.entitled)).toEqual([true, false, true]);
    expect(answers.at(0)?.entitlements[0]?.memberships).toMatchObject([
      { fromEpoch: 1n, toEpoch: 1n },
      { fromEpoch: 3n, toEpoch: 0n },
    ]);
  });

  it('keeps an empty span of who was added and removed before any rotation, and lets them come back at the same epoch', async () => {
    const { alice, conversation, session } = await group(2);
    const dave = await harness.user();
    const out = await remove(alice.device, await add(alice.device, conversation, dave), dave);
    expect((await entitled(out, session.sessionId, dave)).entitlements[0]).toMatchObject({
      everMember: true,
      entitled: false,
      memberships: [{ fromEpoch: 2n, toEpoch: 1n }],
    });
    const back = await add(alice.device, out, dave);
    expect(back.rotationDue).toBe(RotationDueReason.MEMBER_REMOVED);
    const { conversation: rotated } = await rotatedBy(harness, dave.device, back);
    expect((await entitled(rotated, rotated.sessionId, dave)).entitlements[0]?.entitled).toBe(true);
  });

  it('is changed by admins alone, and everybody may leave', async () => {
    const { alice, others, conversation } = await group(3);
    const [bob, carol] = others as [TestUser, TestUser];
    const dave = await harness.user();
    expect(await refusalOf(add(bob.device, conversation, dave))).toMatchObject({
      reason: 'ROLE_NOT_SUFFICIENT',
      metadata: { role: 'MEMBER', needed: 'ADMIN' },
    });
    expect(await refusalOf(remove(bob.device, conversation, carol))).toMatchObject({ reason: 'ROLE_NOT_SUFFICIENT' });
    const left = await remove(bob.device, conversation, bob);
    expect(left.members.map(({ userId }) => userId)).not.toContain(bob.userId);
    expect(await refusalOf(add(alice.device, left, carol))).toMatchObject({
      reason: 'MEMBER_STATE_CONFLICT',
      metadata: { user_id: carol.userId },
    });
    expect(await refusalOf(remove(alice.device, left, bob))).toMatchObject({ reason: 'MEMBER_STATE_CONFLICT' });
  });

  it('gets the first of the rest as admin when the last admin leaves, and may become empty', async () => {
    const [alice, bob] = (await users(2)) as [TestUser, TestUser];
    const { conversation } = await createdBy(harness, alice.device, [bob]);
    const dave = await harness.user();
    const grown = await add(alice.device, conversation, dave);
    const left = await remove(alice.device, grown, alice);
    const [heir = bob, other = dave] = bob.userId < dave.userId ? [bob, dave] : [dave, bob];
    expect(left.members.find(({ role }) => role === MemberRole.ADMIN)?.userId).toBe(heir.userId);
    const empty = await remove(heir.device, left, heir, other);
    expect(empty.members).toEqual([]);
  });

  it('of a direct conversation is fixed', async () => {
    const [alice, bob] = (await users(2)) as [TestUser, TestUser];
    const { conversation } = await createdBy(harness, alice.device, [bob], { kind: ConversationKind.DIRECT });
    const dave = await harness.user();
    const fixed = {
      reason: 'DIRECT_ROSTER_FIXED',
      metadata: { conversation_id: conversation.conversationId },
    };
    expect(await refusalOf(add(alice.device, conversation, dave))).toMatchObject(fixed);
    expect(await refusalOf(remove(alice.device, conversation, alice))).toMatchObject(fixed);
  });

  it('gives the first answer to a repeated change', async () => {
    const { alice, conversation } = await group(2);
    const dave = await harness.user();
    const request = adding(alice.device, conversation, [{ userId: dave.userId, role: MemberRole.MEMBER }]);
    const first = await alice.device.client.addMembers(request);
    expect(await alice.device.client.addMembers(request)).toEqual(first);
    expect(
      await refusalOf(
        alice.device.client.removeMembers({
          ...removing(alice.device, conversation, ['x']),
          requestId: request.requestId,
        }),
      ),
    ).toMatchObject({ reason: 'REQUEST_ID_REUSED' });
  });
});

describe('the log of messages', () => {
  it('has a sequence without gaps under twenty concurrent senders', async () => {
    const { alice, others, conversation, session } = await group(20);
    const each = 5;
    const answers = await Promise.all(
      [alice, ...others].flatMap(({ device }) =>
        Array.from({ length: each }, (_, counter) =>
          device.client.sendMessage(message(device, session, BigInt(counter))),
        ),
      ),
    );
    const sequences = answers.map(({ sequence }) => Number(sequence)).sort((a, b) => a - b);
    expect(sequences).toEqual(Array.from({ length: 20 * each }, (_, index) => index + 1));
    const { messages, more } = await alice.device.client.listMessages({
      conversationId: conversation.conversationId,
      limit: 60,
    });
    expect(messages.map(({ sequence }) => Number(sequence))).toEqual(Array.from({ length: 60 }, (_, i) => i + 1));
    expect(more).toBe(true);
    const rest = await alice.device.web.listMessages({
      conversationId: conversation.conversationId,
      afterSequence: 60n,
    });
    expect(rest.messages).toHaveLength(40);
    expect(rest.more).toBe(false);
  });

  it('returns a message as it was sent, and the same request gets the same place', async () => {
    const { alice, bob, session, conversation } = await group(2);
    const sent = message(alice.device, session, 7n);
    const first = await alice.device.client.sendMessage(sent);
    expect(await alice.device.client.sendMessage(sent)).toEqual(first);
    expect(await alice.device.client.sendMessage({ ...sent, requestId: randomUUID() })).toEqual(first);
    const { messages } = await bob.client.listMessages({
      conversationId: conversation.conversationId,
    });
    expect(messages).toHaveLength(1);
    expect(messages[0]).toMatchObject({
      sequence: 1n,
      epoch: 1n,
      sessionId: session.sessionId,
      senderCounter: 7n,
      sender: { userId: alice.userId, deviceId: alice.device.deviceId },
    });
    expect(messages[0]?.ciphertext).toEqual(sent.ciphertext);
    expect(messages[0]?.signature).toEqual(sent.signature);
  });

  it('tells a message its place again whatever came after it: its request id forgotten, and a member removed or the session rotated', async () => {
    const { alice, bob, session, conversation } = await group(3);
    const { client } = alice.device;
    const sent = message(alice.device, session, 0n);
    const { sequence } = await client.sendMessage(sent);
    await bob.client.removeMembers(removing(bob, conversation, [bob.userId]));
    const again = () => client.sendMessage({ ...sent, requestId: randomUUID() }).catch((refused: unknown) => refused);
    expect(await again()).toMatchObject({ sequence, rotationDue: RotationDueReason.MEMBER_REMOVED });
    expect(await refusalOf(client.sendMessage(message(alice.device, session, 1n)))).toMatchObject({
      reason: 'ROTATION_REQUIRED',
    });
    expect(await refusalOf(client.sendMessage(message(alice.device, session, 0n)))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'sender_counter' },
    });
    const { conversation: now } = await client.getConversation({ conversationId: conversation.conversationId });
    await rotatedBy(harness, alice.device, now as Conversation);
    expect(await again()).toMatchObject({ sequence, rotationDue: RotationDueReason.UNSPECIFIED });
    const { messages } = await client.listMessages({ conversationId: conversation.conversationId });
    expect(messages).toHaveLength(1);
  });

  it('refuses a counter that was used for another message, also when both come at once', async () => {
    const { alice, session } = await group(1);
    const outcomes = await Promise.allSettled(
      [1, 2].map(() => alice.device.client.sendMessage(message(alice.device, session, 3n))),
    );
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    const [refused] = outcomes.filter((outcome) => outcome.status === 'rejected');
    expect(await refusalOf(Promise.reject(refused?.reason))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'sender_counter' },
    });
    expect((await alice.device.client.sendMessage(message(alice.device, session, 4n))).sequence).toBe(2n);
  });

  it('refuses a signature that does not verify, a counter beyond 63 bits, and a session that it does not know', async () => {
    const { alice, session } = await group(1);
    const { client } = alice.device;
    const sent = message(alice.device, session, 0n);
    expect(await refusalOf(client.sendMessage({ ...sent, senderCounter: 1n }))).toMatchObject({
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'signature' },
    });
    expect(await refusalOf(client.sendMessage({ ...sent, senderCounter: 2n ** 63n }))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'sender_counter' },
    });
    expect(await refusalOf(client.sendMessage({ ...sent, sessionId: 'session_unknown' }))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'session_id' },
    });
  });

  it('refuses a sender under a session of an epoch before the membership', async () => {
    const { alice, conversation, session } = await group(2);
    const dave = await harness.user();
    const { conversation: second } = await rotatedBy(harness, alice.device, conversation);
    await rotatedBy(harness, alice.device, await add(alice.device, second, dave));
    expect(await refusalOf(dave.device.client.sendMessage(message(dave.device, session, 0n)))).toMatchObject({
      reason: 'NOT_ENTITLED',
    });
  });

  it('accepts nothing from a device that is not registered, or was revoked before it first sent', async () => {
    const user = await harness.user(2);
    const [phone, laptop] = user.devices as [TestDevice, TestDevice];
    const { session } = await createdBy(harness, phone, []);
    harness.revoke(laptop);
    expect(await refusalOf(laptop.client.sendMessage(message(laptop, session, 0n)))).toMatchObject({
      reason: 'DEVICE_REVOKED',
      metadata: { device_id: laptop.deviceId },
    });
  });

  it('accepts the session of an earlier epoch as long as nobody has left since', async () => {
    const { alice, conversation, session } = await group(2);
    await rotatedBy(harness, alice.device, conversation);
    expect((await alice.device.client.sendMessage(message(alice.device, session, 0n))).sequence).toBe(1n);
  });

  it('shows a member the epochs of that membership alone', async () => {
    const { alice, conversation, session } = await group(2);
    await alice.device.client.sendMessage(message(alice.device, session, 0n));
    const dave = await harness.user();
    const grown = await add(alice.device, conversation, dave);
    const { session: second } = await rotatedBy(harness, alice.device, grown);
    await alice.device.client.sendMessage(message(alice.device, second, 0n));
    const { conversationId } = conversation;
    const seen = await dave.device.client.listMessages({ conversationId });
    expect(seen.messages.map(({ sequence }) => sequence)).toEqual([2n]);
    expect(await dave.device.client.listMessages({ conversationId, afterSequence: 2n ** 63n - 1n })).toMatchObject({
      messages: [],
      more: false,
    });
  });

  it('ends a page before it becomes too large for an answer', async () => {
    const { alice, conversation, session } = await group(1);
    const large = 65_536;
    for (let counter = 0n; counter < 40n; counter++)
      await alice.device.client.sendMessage(message(alice.device, session, counter, randomUUID(), large));
    const { conversationId } = conversation;
    const first = await alice.device.client.listMessages({ conversationId, limit: 500 });
    expect(first.messages.length).toBe(32);
    expect(first.more).toBe(true);
    const rest = await alice.device.client.listMessages({ conversationId, limit: 500, afterSequence: 32n });
    expect(rest.messages.length).toBe(8);
    expect(rest.more).toBe(false);
  });
});

describe('what other services ask', () => {
  it('knows nothing of a conversation that does not exist, and says so', async () => {
    const answer = await harness.services.checkEntitlement({
      conversationId: randomUUID(),
      sessionId: 'session_1',
      userIds: ['b', 'a'],
    });
    expect(answer).toMatchObject({ conversationKnown: false, sessionCommitted: false, epoch: 0n });
    expect(answer.entitlements.map(({ userId, everMember }) => [userId, everMember])).toEqual([
      ['b', false],
      ['a', false],
    ]);
  });

  it('tells of a session that is stored but not committed that it is not committed', async () => {
    const { alice, conversation } = await group(2);
    const gate = gateAt('conversation.before-commit');
    harness.atFaultPoint = gate.at;
    const { request, session } = rotation(harness, alice.device, conversation);
    const rotating = alice.device.client.rotateSession(request);
    await gate.reached;
    expect(await entitled(conversation, session.sessionId, alice)).toMatchObject({
      conversationKnown: true,
      sessionCommitted: false,
      currentEpoch: 1n,
      currentSessionId: conversation.sessionId,
    });
    gate.open();
    await rotating;
    const answer = await entitled(conversation, session.sessionId, alice);
    expect(answer).toMatchObject({ sessionCommitted: true, epoch: 2n });
    expect(answer.lastWriteTraceId).toMatch(/^[0-9a-f]{32}$/);
  });

  it('names those who share a conversation now', async () => {
    const { alice, others, conversation } = await group(3);
    const [bob, carol] = others as [TestUser, TestUser];
    const stranger = await harness.user();
    await remove(alice.device, conversation, carol);
    const { userIds } = await harness.services.listSharedUsers({
      userId: alice.userId,
      otherUserIds: [bob.userId, carol.userId, stranger.userId],
    });
    expect(userIds).toEqual([bob.userId]);
  });

  it('names those who have left to those who stayed, and not the reverse', async () => {
    const { alice, others, conversation } = await group(3);
    const [bob, carol] = others as [TestUser, TestUser];
    await remove(alice.device, conversation, carol);
    const sharedWith = async ({ userId }: TestUser, ...asked: TestUser[]) => {
      const otherUserIds = asked.map((user) => user.userId);
      return (await harness.services.listSharedUsers({ userId, otherUserIds, includeFormerMembers: true })).userIds;
    };
    expect((await sharedWith(alice, bob, carol)).sort()).toEqual([bob.userId, carol.userId].sort());
    expect(await sharedWith(carol, alice, bob)).toEqual([]);
  });
});

describe('a list of conversations', () => {
  it('has the newest first, in pages, and only those of a current member', async () => {
    const alice = await harness.user();
    const made: string[] = [];
    for (let index = 0; index < 5; index++)
      made.unshift((await createdBy(harness, alice.device, [])).conversation.conversationId);
    const pages: string[][] = [];
    let token = '';
    do {
      const page = await alice.device.web.listConversations({ page: { size: 2, token } });
      pages.push(page.conversations.map(({ conversationId }) => conversationId));
      token = page.nextToken;
    } while (token !== '');
    expect(pages.map(({ length }) => length)).toEqual([2, 2, 1]);
    expect(pages.flat()).toEqual(made);
    const { conversation } = await alice.device.client.getConversation({ conversationId: made[0] as string });
    await remove(alice.device, conversation as Conversation, alice);
    const { conversations } = await alice.device.client.listConversations({});
    expect(conversations.map(({ conversationId }) => conversationId)).toEqual(made.slice(1));
  });

  it('refuses a token of its own making', async () => {
    const alice = await harness.user();
    expect(await refusalOf(alice.device.client.listConversations({ page: { token: 'bm9uc2Vuc2U' } }))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'page.token' },
    });
  });
});

it('answers a creation that failed after its commit with what was committed, and its repetition too', async () => {
  const alice = await harness.user();
  const { request, session } = creation(harness, alice.device, []);
  harness.atFaultPoint = async (point) => {
    if (point === 'conversation.after-commit') throw new Error('the power is gone');
  };
  const first = await alice.device.client.createConversation(request);
  expect(first.conversation?.sessionId).toBe(session.sessionId);
  harness.atFaultPoint = async () => {};
  expect(await alice.device.client.createConversation(request)).toEqual(first);
});
