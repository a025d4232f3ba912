import { randomUUID } from 'node:crypto';
import { createClient } from '@connectrpc/connect';
import { createServiceIdentity } from '@keytrail/auth';
import {
  type Conversation,
  ConversationService,
  HistoryPolicy,
  MemberRole,
  RotationDueReason,
} from '@keytrail/contracts';
import { createGrpcTransport } from '@keytrail/rpc';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readConfig } from '../src/service.ts';
import {
  adding,
  type ConversationClient,
  createdBy,
  type Harness,
  message,
  refusalOf,
  removing,
  rotatedBy,
  startHarness,
  type TestDevice,
  type TestUser,
} from './harness.ts';

let harness: Harness;
let presence: ConversationClient;
let close: () => void;

beforeAll(async () => {
  // Nobody else's transaction holds back the horizon of this cluster: what is told again then is right, but no test can say how often.
  harness = await startHarness({}, { own: true, settings: { autovacuum: 'off' } });
  const identity = createServiceIdentity(readConfig(harness.environment()), 'presence');
  const transport = createGrpcTransport({
    target: harness.grpcTarget,
    authorization: () => identity.header(),
    retry: { retries: 0 },
  });
  close = () => transport.close();
  presence = createClient(ConversationService, transport);
}, 120_000);

afterAll(async () => {
  close?.();
  await harness?.[Symbol.asyncDispose]();
});

async function group(count: number, historyPolicy: HistoryPolicy = HistoryPolicy.OWN_MEMBERSHIP) {
  const [alice, ...others] = (await Promise.all(Array.from({ length: count }, () => harness.user()))) as [
    TestUser,
    ...TestUser[],
  ];
  return { alice, others, ...(await createdBy(harness, alice.device, others, { historyPolicy })) };
}

/** All changes after a cursor, page by page. */
async function changesAfter(device: TestDevice, cursor: string, limit = 0) {
  const changes = [];
  for (let next = cursor; ; ) {
    const page = await device.client.listChanges({ cursor: next, limit });
    changes.push(...page.changes);
    next = page.nextCursor;
    if (!page.more) return { changes, cursor: next, ids: changes.map(({ conversationId }) => conversationId) };
  }
}

async function remove(by: TestDevice, conversation: Conversation, userId: string): Promise<Conversation> {
  return (await by.client.removeMembers(removing(by, conversation, [userId]))).conversation as Conversation;
}

async function add(by: TestDevice, conversation: Conversation, userId: string): Promise<Conversation> {
  const members = [{ userId, role: MemberRole.MEMBER }];
  return (await by.client.addMembers(adding(by, conversation, members))).conversation as Conversation;
}

describe('changes', () => {
  it('tell where each conversation stands, once, and then nothing until there is something', async () => {
    const { alice, others, conversation, session } = await group(2);
    const [bob] = others as [TestUser];
    const { conversation: second } = await createdBy(harness, bob.device, [alice]);
    const first = await changesAfter(bob.device, '');
    expect(first.ids.toSorted()).toEqual([conversation.conversationId, second.conversationId].toSorted());
    expect((await changesAfter(bob.device, first.cursor)).changes).toEqual([]);

    await alice.device.client.sendMessage(message(alice.device, session, 0n));
    await alice.device.client.sendMessage(message(alice.device, session, 1n));
    const { changes, cursor } = await changesAfter(bob.device, first.cursor);
    expect(changes).toMatchObject([
      {
        conversationId: conversation.conversationId,
        epoch: 1n,
        sessionId: conversation.sessionId,
        rosterVersion: 1n,
        lastSequence: 2n,
        rotationDue: RotationDueReason.UNSPECIFIED,
        left: false,
      },
    ]);
    const rotated = await rotatedBy(harness, alice.device, conversation);
    expect((await changesAfter(bob.device, cursor)).changes).toMatchObject([
      { epoch: 2n, sessionId: rotated.conversation.sessionId, lastSequence: 2n },
    ]);
  });

  it('miss none that is committed late: one whose transaction began earlier than what was told already', async () => {
    const { alice, conversation: early } = await group(2);
    const { conversation: other, session } = await createdBy(harness, alice.device, []);
    const { cursor } = await changesAfter(alice.device, '');
    const client = await harness.db.pool.connect();
    try {
      await client.query('BEGIN');
      await client.query('UPDATE conversations SET rotation_due = 1 WHERE conversation_id = $1', [
        early.conversationId,
      ]);
      await alice.device.client.sendMessage(message(alice.device, session, 0n));
      const meanwhile = await changesAfter(alice.device, cursor);
      expect(meanwhile.ids).toEqual([other.conversationId]);
      await client.query('COMMIT');
      const after = await changesAfter(alice.device, meanwhile.cursor);
      expect(after.changes.filter(({ conversationId }) => conversationId === early.conversationId)).toMatchObject([
        { rotationDue: RotationDueReason.REQUESTED },
      ]);
      expect((await changesAfter(alice.device, after.cursor)).changes).toEqual([]);
    } finally {
      client.release();
    }
  });

  it('miss none while others write, whatever the size of the pages', async () => {
    const alice = await harness.user();
    const made = await Promise.all(Array.from({ length: 6 }, () => createdBy(harness, alice.device, [])));
    const known = new Map<string, bigint>();
    let writing = true;
    const readers = [1, 2, 100].map(async (limit) => {
      const seen = new Map<string, bigint>();
      let cursor = '';
      for (let last = false; ; ) {
        const walk = await changesAfter(alice.device, cursor, limit);
        cursor = walk.cursor;
        for (const { conversationId, lastSequence } of walk.changes) seen.set(conversationId, lastSequence);
        if (last) return seen;
        last = !writing;
      }
    });
    await Promise.all(
      made.map(async ({ session }) => {
        for (let counter = 0n; counter < 12n; counter++) {
          const { sequence } = await alice.device.client.sendMessage(message(alice.device, session, counter));
          known.set(session.conversationId, sequence);
        }
      }),
    );
    writing = false;
    for (const seen of await Promise.all(readers)) expect([...seen].toSorted()).toEqual([...known].toSorted());
  });

  it('write nothing but the conversation for a message, however many members there are', async () => {
    const { alice, conversation, session } = await group(3);
    const [before] = await harness.query<{ changed: string }>(
      'SELECT string_agg(xmin::text, $2 ORDER BY user_id) AS changed FROM memberships WHERE conversation_id = $1',
      conversation.conversationId,
      ',',
    );
    await alice.device.client.sendMessage(message(alice.device, session, 0n));
    const [after] = await harness.query<{ changed: string }>(
      'SELECT string_agg(xmin::text, $2 ORDER BY user_id) AS changed FROM memberships WHERE conversation_id = $1',
      conversation.conversationId,
      ',',
    );
    expect(after).toEqual(before);
  });

  it('tell a removed member once, as far as the membership went, and nothing of later', async () => {
    const { alice, others, conversation, session } = await group(3);
    const [bob] = others as [TestUser];
    await alice.device.client.sendMessage(message(alice.device, session, 0n));
    const { cursor } = await changesAfter(bob.device, '');
    const left = await remove(alice.device, conversation, bob.userId);
    const next = await rotatedBy(harness, alice.device, left);
    await alice.device.client.sendMessage(message(alice.device, next.session, 0n));

    const told = await changesAfter(bob.device, cursor);
    expect(told.changes).toMatchObject([
      {
        conversationId: conversation.conversationId,
        epoch: 1n,
        sessionId: conversation.sessionId,
        lastSequence: 1n,
        left: true,
      },
    ]);
    await alice.device.client.sendMessage(message(alice.device, next.session, 1n));
    expect((await changesAfter(bob.device, told.cursor)).changes).toEqual([]);
    expect((await changesAfter(bob.device, '')).changes).toEqual([]);

    // Back again: a member like any other.
    const { conversation: now } = await alice.device.client.getConversation({
      conversationId: conversation.conversationId,
    });
    await add(alice.device, now as Conversation, bob.userId);
    expect((await changesAfter(bob.device, told.cursor)).changes).toMatchObject([{ epoch: 2n, left: false }]);
  });

  it('begin anew when the cursor is of another database, and say so', async () => {
    const { alice, conversation } = await group(1);
    const { cursor } = await changesAfter(alice.device, '');
    const text = Buffer.from(cursor, 'base64url').toString().split(' ');
    const foreign = Buffer.from(text.with(1, 'AAAAAAAAAAAA').join(' ')).toString('base64url');
    const answer = await alice.device.client.listChanges({ cursor: foreign });
    expect(answer).toMatchObject({ reset: true, more: false });
    expect(answer.changes.map(({ conversationId }) => conversationId)).toEqual([conversation.conversationId]);
    expect(await refusalOf(alice.device.client.listChanges({ cursor: 'nonsense' }))).toMatchObject({
      reason: 'INVALID_FIELD',
      fields: [{ field: 'cursor' }],
    });
  });
});

describe('what waits for a device', () => {
  it('is its conversations whose rotation is due, the longest due first, and whether anything changed', async () => {
    const alice = await harness.user();
    const bob = await harness.user();
    const device = { userId: bob.userId, deviceId: bob.device.deviceId };
    const made: Conversation[] = [];
    for (let index = 0; index < 3; index++) {
      const { conversation } = await createdBy(harness, alice.device, [bob]);
      made.push(conversation);
    }
    for (const { conversationId } of made.toReversed())
      await alice.device.client.requestRotation({ requestId: randomUUID(), conversationId, expectedEpoch: 1n });
    const { cursor } = await changesAfter(bob.device, '');
    expect(await presence.getConversationsWaiting({ device, cursor })).toMatchObject({
      rotationsDue: made.toReversed().map(({ conversationId }) => conversationId),
      moreRotationsDue: false,
      changed: false,
    });
    await rotatedBy(harness, alice.device, made[0] as Conversation);
    const after = await presence.getConversationsWaiting({ device, cursor });
    expect(after.changed).toBe(true);
    expect(after.rotationsDue).toEqual([made[2]?.conversationId, made[1]?.conversationId]);
    // A greeting is not kept back by a cursor that is none.
    expect((await presence.getConversationsWaiting({ device, cursor: 'nonsense' })).changed).toBe(true);
  });

  it('is a hundred rotations at most, and that there are more', async () => {
    const { userId, device } = await harness.user();
    for (let index = 0; index < 101; index += 10)
      await Promise.all(Array.from({ length: Math.min(10, 101 - index) }, () => createdBy(harness, device, [])));
    await harness.query(
      'UPDATE conversations SET rotation_due = 1 WHERE conversation_id IN (SELECT conversation_id FROM memberships WHERE user_id = $1)',
      userId,
    );
    const answer = await presence.getConversationsWaiting({ device: { userId, deviceId: device.deviceId } });
    expect(answer).toMatchObject({ moreRotationsDue: true, changed: true });
    expect(new Set(answer.rotationsDue).size).toBe(100);
  });

  it('is for presence alone', async () => {
    const { alice } = await group(1);
    const device = { userId: alice.userId, deviceId: alice.device.deviceId };
    for (const client of [alice.device.client, harness.services])
      expect(await refusalOf(client.getConversationsWaiting({ device }))).toMatchObject({
        reason: 'CALLER_NOT_ALLOWED',
      });
  });
});

describe('the list of sessions', () => {
  async function sessionsOf(
    device: TestDevice,
    size: number,
    asked: { conversationId?: string; currentOnly?: boolean } = {},
  ) {
    const sessions = [];
    for (let token = ''; ; ) {
      const page = await device.client.listSessions({ ...asked, page: { size, token } });
      expect(page.sessions.length).toBeLessThanOrEqual(size);
      sessions.push(...page.sessions);
      token = page.nextToken;
      if (token === '') return sessions;
    }
  }

  it('has all sessions of all conversations, the newest first, page by page, also while epochs are added', async () => {
    const alice = await harness.user();
    const ids: string[] = [];
    const made: Conversation[] = [];
    for (let index = 0; index < 3; index++) {
      const { conversation } = await createdBy(harness, alice.device, []);
      const rotated = await rotatedBy(harness, alice.device, conversation);
      ids.push(conversation.sessionId, rotated.conversation.sessionId);
      made.push(rotated.conversation);
    }
    const all = await sessionsOf(alice.device, 200);
    expect(all.map(({ sessionId }) => sessionId)).toEqual(ids.toReversed());
    expect(all.map(({ epoch, current }) => [epoch, current])).toEqual(
      ids.map((_, index) => (index % 2 === 0 ? [2n, true] : [1n, false])),
    );
    expect(all[0]).toMatchObject({ conversationId: made[2]?.conversationId, headerHash: made[2]?.headerHash });

    const first = await alice.device.client.listSessions({ page: { size: 2 } });
    await rotatedBy(harness, alice.device, made[0] as Conversation);
    const rest = [];
    for (let token = first.nextToken; token !== ''; ) {
      const page = await alice.device.client.listSessions({ page: { size: 1, token } });
      rest.push(...page.sessions);
      token = page.nextToken;
    }
    expect([...first.sessions, ...rest].map(({ sessionId }) => sessionId)).toEqual(ids.toReversed());
    const current = await sessionsOf(alice.device, 2, { currentOnly: true });
    expect(current.map(({ epoch }) => epoch)).toEqual([3n, 2n, 2n]);
    const one = await sessionsOf(alice.device, 1, { conversationId: made[1]?.conversationId ?? '' });
    expect(one.map(({ sessionId }) => sessionId)).toEqual([ids[3], ids[2]]);
  });

  it('has of a membership its own epochs, before and after it none', async () => {
    const { alice, others, conversation } = await group(3);
    const [bob] = others as [TestUser];
    const { conversationId } = conversation;
    const without = await remove(alice.device, conversation, bob.userId);
    const left = await sessionsOf(bob.device, 10);
    const second = await rotatedBy(harness, alice.device, without);
    // Of the rotation after it, who left learns nothing by the list either.
    expect(await sessionsOf(bob.device, 10)).toEqual(left);
    expect(left).toMatchObject([{ epoch: 1n, current: false }]);
    const epochs = async () => (await sessionsOf(bob.device, 10, { conversationId })).map(({ epoch }) => epoch);
    expect(await epochs()).toEqual([1n]);
    const back = await add(alice.device, second.conversation, bob.userId);
    expect(await epochs()).toEqual([1n]);
    expect(await sessionsOf(bob.device, 10, { conversationId, currentOnly: true })).toEqual([]);
    await rotatedBy(harness, alice.device, back);
    expect(await epochs()).toEqual([3n, 1n]);
    expect(await sessionsOf(bob.device, 10)).toHaveLength(2);
  });

  it('has earlier epochs too where history is shared', async () => {
    const { alice, conversation } = await group(2, HistoryPolicy.SHARED);
    const dave = await harness.user();
    const rotated = await rotatedBy(harness, alice.device, conversation);
    await add(alice.device, rotated.conversation, dave.userId);
    expect((await sessionsOf(dave.device, 10)).map(({ epoch }) => epoch)).toEqual([2n, 1n]);
  });

  it('is nothing for strangers, and refuses a token of its own making', async () => {
    const { conversation } = await group(1);
    const stranger = await harness.user();
    const { conversationId } = conversation;
    expect(await sessionsOf(stranger.device, 10)).toEqual([]);
    expect(await refusalOf(stranger.device.client.listSessions({ conversationId }))).toMatchObject({
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
    });
    expect(await refusalOf(stranger.device.client.listSessions({ page: { token: 'x' } }))).toMatchObject({
      reason: 'INVALID_FIELD',
    });
  });
});

describe('the list of conversations', () => {
  it('has each of those that were there once, also while further ones are added', async () => {
    const alice = await harness.user();
    const made: string[] = [];
    for (let index = 0; index < 5; index++)
      made.push((await createdBy(harness, alice.device, [])).conversation.conversationId);
    const listed: string[] = [];
    for (let token = ''; ; ) {
      const page = await alice.device.client.listConversations({ page: { size: 2, token } });
      listed.push(...page.conversations.map(({ conversationId }) => conversationId));
      token = page.nextToken;
      if (token === '') break;
      await createdBy(harness, alice.device, []);
    }
    expect(listed).toEqual(made.toReversed());
  });
});
