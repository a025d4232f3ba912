import { randomUUID } from 'node:crypto';
import { fromBinary } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  ConversationKind,
  MemberRole,
  RotationDueReason,
  type UserErased,
  UserErasedSchema,
} from '@keytrail/contracts';
import {
  connectEvents,
  type EventBus,
  publishHint,
  subscribeCore,
  userErased,
  userErasureRequested,
} from '@keytrail/events';
import { readSettings } from '@keytrail/settings';
import { isCheckViolation, statement } from '@keytrail/storage';
import { startTelemetry, type Telemetry } from '@keytrail/telemetry';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { forgetOldIds } from '../src/jobs/forget-old-ids.ts';
import { conversationSettings } from '../src/service.ts';
import {
  adding,
  createdBy,
  creation,
  type Harness,
  message,
  refusalOf,
  removing,
  rotatedBy,
  startHarness,
  type TestUser,
} from './harness.ts';

let harness: Harness;
let bus: EventBus;
let telemetry: Telemetry;
let stop: () => Promise<void>;
const reports: UserErased[] = [];

beforeAll(async () => {
  harness = await startHarness({ KEYTRAIL_ERASURE_BATCH: '2' });
  const config = readSettings(conversationSettings, harness.environment());
  telemetry = startTelemetry({ service: 'conversation', config });
  bus = await connectEvents({ config, log: telemetry.log });
  const subscription = subscribeCore(bus, userErased.conversation.subject, async (bytes) => {
    reports.push(fromBinary(UserErasedSchema, bytes));
  });
  await bus.connection.flush();
  stop = async () => {
    subscription.stop();
    await bus.close();
    await telemetry.shutdown();
  };
}, 120_000);
afterAll(async () => {
  await stop?.();
  await harness?.[Symbol.asyncDispose]();
});

function ask(erasureId: string, user: TestUser): Promise<void> {
  return publishHint(bus, userErasureRequested, {
    erasureId,
    userId: user.userId,
    deviceIds: user.devices.map(({ deviceId }) => deviceId),
    requestedAt: timestampFromDate(new Date()),
  });
}

function reportOf(erasureId: string, count = 1) {
  return vi.waitFor(
    () => {
      const of = reports.filter((report) => report.erasureId === erasureId);
      expect(of.length).toBeGreaterThanOrEqual(count);
      return of.map(({ report }) =>
        Object.fromEntries(
          (report?.counts ?? []).map(({ kind, erased, kept }) => [
            kind,
            { erased: Number(erased), kept: Number(kept) },
          ]),
        ),
      );
    },
    { timeout: 10_000, interval: 20 },
  );
}

async function erase(user: TestUser) {
  const erasureId = randomUUID();
  await ask(erasureId, user);
  return (await reportOf(erasureId))[0];
}

/** Table and column of each text that is, or has within it, the user's id; events that wait to be published aside. */
async function placesNaming(userId: string): Promise<string[]> {
  const columns = await harness.query<{ table_name: string; column_name: string; data_type: string }>(
    `SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns
     WHERE table_schema = 'public' AND data_type IN ('text', 'bytea') AND table_name <> 'outbox'`,
  );
  const found: string[] = [];
  for (const { table_name, column_name, data_type } of columns) {
    const text = data_type === 'bytea' ? `encode(${column_name}, 'escape')` : column_name;
    const rows = await harness.query(`SELECT 1 FROM ${table_name} WHERE strpos(${text}, $1) > 0 LIMIT 1`, userId);
    if (rows.length > 0) found.push(`${table_name}.${column_name}`);
  }
  return found.sort();
}

describe('an erased user', () => {
  it('has left every roster; the group goes on with another admin, after a rotation', async () => {
    const [alice, bob, carol] = [await harness.user(2), await harness.user(), await harness.user()];
    const { conversation, session } = await createdBy(harness, alice.device, [bob, carol]);
    const { conversationId } = conversation;
    await alice.device.client.sendMessage(message(alice.device, session, 0n));

    await erase(alice);
    const { conversation: after } = await bob.device.client.getConversation({ conversationId });
    expect(after?.members.map(({ userId }) => userId)).toEqual([bob.userId, carol.userId].sort());
    expect(after?.members.filter(({ role }) => role === MemberRole.ADMIN)).toHaveLength(1);
    expect(after).toMatchObject({ rosterVersion: 2n, rotationDue: RotationDueReason.MEMBER_REMOVED });
    const refused = await refusalOf(bob.device.client.sendMessage(message(bob.device, session, 0n)));
    expect(refused.reason).toBe('ROTATION_REQUIRED');
    if (!after) throw new Error('no conversation');
    const rotated = await rotatedBy(harness, bob.device, after);
    await bob.device.client.sendMessage(message(bob.device, rotated.session, 0n));
    const gone = await refusalOf(alice.device.client.getConversation({ conversationId }));
    expect(gone.reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
  });

  it('leaves the places of its messages in the log, and nothing in them', async () => {
    const [alice, bob] = [await harness.user(2), await harness.user()];
    const { conversation, session } = await createdBy(harness, alice.device, [bob]);
    const { conversationId } = conversation;
    const [phone, laptop] = alice.devices;
    if (!phone || !laptop) throw new Error('two devices');
    for (const [device, counter] of [
      [phone, 0n],
      [phone, 1n],
      [laptop, 0n],
      [laptop, 1n],
      [phone, 2n],
    ] as const)
      await device.client.sendMessage(message(device, session, counter));
    await bob.device.client.sendMessage(message(bob.device, session, 0n));

    const counts = await erase(alice);
    expect(counts).toMatchObject({ messages: { erased: 5, kept: 0 }, memberships: { erased: 1, kept: 0 } });
    const { messages } = await bob.device.client.listMessages({ conversationId });
    expect(messages.map(({ sequence }) => sequence)).toEqual([1n, 2n, 3n, 4n, 5n, 6n]);
    for (const blank of messages.slice(0, 5)) {
      expect(blank.erasedAt).toBeDefined();
      expect(blank.sender).toBeUndefined();
      expect(blank.ciphertext).toHaveLength(0);
      expect(blank.signature).toHaveLength(0);
    }
    expect(messages[5]).toMatchObject({ sender: { userId: bob.userId } });
    expect(messages[5]?.erasedAt).toBeUndefined();
  });

  it('closes direct conversations that the user began, too: the other member is its admin then', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { conversation } = await createdBy(harness, alice.device, [bob], { kind: ConversationKind.DIRECT });
    const { conversation: group } = await createdBy(harness, alice.device, [bob]);
    await erase(alice);
    const { conversation: closed } = await bob.device.client.getConversation({
      conversationId: conversation.conversationId,
    });
    expect(closed?.closedAt).toBeDefined();
    for (const { conversationId } of [conversation, group]) {
      const { conversation: left } = await bob.device.client.getConversation({ conversationId });
      expect(left?.members).toMatchObject([{ userId: bob.userId, role: MemberRole.ADMIN }]);
    }
  });

  it('closes direct conversations: the other member reads on, writes no more, and can begin no other with the user', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { conversation, session } = await createdBy(harness, bob.device, [alice], { kind: ConversationKind.DIRECT });
    const { conversationId } = conversation;
    await bob.device.client.sendMessage(message(bob.device, session, 0n));
    await erase(alice);

    const { conversation: closed } = await bob.device.client.getConversation({ conversationId });
    expect(closed?.closedAt).toBeDefined();
    expect(closed?.members.map(({ userId }) => userId)).toEqual([bob.userId]);
    expect((await bob.device.client.listMessages({ conversationId })).messages).toHaveLength(1);
    const writes = await refusalOf(bob.device.client.sendMessage(message(bob.device, session, 1n)));
    expect(writes).toMatchObject({ reason: 'CONVERSATION_CLOSED', metadata: { conversation_id: conversationId } });
    const asks = bob.device.client.requestRotation({ requestId: randomUUID(), conversationId, expectedEpoch: 1n });
    expect((await refusalOf(asks)).reason).toBe('CONVERSATION_CLOSED');
    if (!closed) throw new Error('no conversation');
    expect((await refusalOf(rotatedBy(harness, bob.device, closed))).reason).toBe('CONVERSATION_CLOSED');

    const again = creation(harness, bob.device, [alice], { kind: ConversationKind.DIRECT });
    const refused = await refusalOf(bob.device.client.createConversation(again.request));
    expect(refused).toMatchObject({ reason: 'USER_ERASED', metadata: { user_id: alice.userId } });
  });

  it('is added to nothing any more', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { conversation } = await createdBy(harness, bob.device, []);
    await erase(alice);
    const added = bob.device.client.addMembers(
      adding(bob.device, conversation, [{ userId: alice.userId, role: MemberRole.MEMBER }]),
    );
    expect(await refusalOf(added)).toMatchObject({ reason: 'USER_ERASED', metadata: { user_id: alice.userId } });
  });

  it('is named nowhere but in what is kept: epochs that the user made, the logs of rosters, and what others were answered within seven days', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { session } = await createdBy(harness, alice.device, [bob]);
    await alice.device.client.sendMessage(message(alice.device, session, 0n));
    const pair = await createdBy(harness, bob.device, [alice], { kind: ConversationKind.DIRECT });
    await harness.query(
      `INSERT INTO candidates (conversation_id, session_id, request_id, caller_user_id, writer_build, trace_id)
       VALUES ($1::uuid, 'late', $2::uuid, $3, 'b', '')`,
      pair.conversation.conversationId,
      randomUUID(),
      alice.userId,
    );
    const counts = await erase(alice);
    expect(counts).toMatchObject({
      conversations: { erased: 2 },
      candidates: { erased: 1 },
      request_ids: { erased: 2 },
      epochs: { erased: 0, kept: 1 },
      // Of each of the two rosters: the version that names the user, and the erasure.
      roster_log: { erased: 0, kept: 4 },
    });
    expect(await placesNaming(alice.userId)).toEqual([
      'epochs.initiator_user_id',
      'erasures.user_id',
      'request_ids.response',
      'roster_log.author_user_id',
      'roster_log.change',
      'roster_log.erased_user_id',
    ]);
  });

  it('is not among those who were asked for a rotation any more; it is due, and others are asked', async () => {
    const [alice, bob, carol] = [await harness.user(), await harness.user(), await harness.user()];
    const { conversation } = await createdBy(harness, bob.device, [alice, carol]);
    const { conversationId } = conversation;
    await bob.device.client.removeMembers(removing(bob.device, conversation, [carol.userId]));
    const asks = () =>
      harness.query('SELECT user_id FROM rotation_asks WHERE conversation_id = $1 ORDER BY user_id', conversationId);
    await harness.query(
      `INSERT INTO rotation_asks (conversation_id, user_id, device_id, asked_at, asked_until, ended_at)
       SELECT $1, user_id, 'phone', now(), now() + interval '1 hour', CASE WHEN user_id = $2 THEN NULL ELSE now() END
       FROM unnest(ARRAY[$2, $3]) AS asked (user_id)`,
      conversationId,
      alice.userId,
      bob.userId,
    );
    const look = () =>
      harness.query<{ version: bigint }>(
        'SELECT version FROM rotations_due WHERE conversation_id = $1',
        conversationId,
      );
    const [before] = await look();
    expect(await erase(alice)).toMatchObject({ rotation_asks: { erased: 1, kept: 0 } });
    expect(await asks()).toEqual([{ user_id: bob.userId }]);
    const [after] = await look();
    expect(after?.version).toBeGreaterThan(before?.version ?? 0n);
    expect((await bob.device.client.getRotation({ conversationId })).askedDevice).toBeUndefined();
    expect(await placesNaming(alice.userId)).not.toContain('rotation_asks.user_id');
  });

  it('is erased once and reported each time, however often it is asked for', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { session } = await createdBy(harness, alice.device, [bob]);
    for (let counter = 0n; counter < 5n; counter++)
      await alice.device.client.sendMessage(message(alice.device, session, counter));
    const erasureId = randomUUID();
    await Promise.all([ask(erasureId, alice), ask(erasureId, alice), ask(erasureId, alice)]);
    const all = await reportOf(erasureId, 3);
    for (const counts of all) expect(counts).toEqual(all[0]);
    expect(all[0]).toMatchObject({ messages: { erased: 5 }, conversations: { erased: 1 }, epochs: { kept: 1 } });
  });

  it('is erased to the end after a failure in the middle, and counted right', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { session } = await createdBy(harness, alice.device, [bob]);
    for (let counter = 0n; counter < 5n; counter++)
      await alice.device.client.sendMessage(message(alice.device, session, counter));
    let batches = 0;
    harness.atFaultPoint = async (point) => {
      if (point === 'conversation.during-erasure' && ++batches === 2) throw new Error('power cut');
    };
    const counts = await erase(alice).finally(() => {
      harness.atFaultPoint = async () => {};
    });
    expect(batches).toBeGreaterThan(4);
    expect(counts).toMatchObject({ messages: { erased: 5 }, memberships: { erased: 1 } });
  });
});

describe('the purge', () => {
  it('forgets all that is past its time in one go, however much it is', async () => {
    await harness.query(
      `INSERT INTO request_ids (caller, request_id, method, content_digest, created_at)
       SELECT 'somebody', gen_random_uuid(), 'm', decode(repeat('00', 32), 'hex'), now() - interval '8 days'
       FROM generate_series(1, 20500)`,
    );
    const forgetting = forgetOldIds(harness.db, telemetry.log, { everyMs: 3_600_000, auditLogRetentionMs: 86_400_000 });
    try {
      await vi.waitFor(
        async () =>
          expect(
            await harness.query(`SELECT count(*)::int AS left FROM request_ids WHERE caller = 'somebody'`),
          ).toEqual([{ left: 0 }]),
        { timeout: 20_000 },
      );
    } finally {
      await forgetting.stop();
    }
  });
});

describe('the database, by straight SQL, refuses', () => {
  let statements = 0;
  async function failureOf(...run: readonly (readonly [text: string, ...values: unknown[]])[]): Promise<unknown> {
    const accepted = new Error('was not refused');
    return harness.db
      .transaction(async (tx) => {
        for (const [text, ...values] of run) {
          statements += 1;
          await tx.query(statement(`erasure_test_${statements}`, text), values);
        }
        throw accepted;
      })
      .catch((error: unknown) => (error === accepted ? 'accepted' : error));
  }
  const note = (userId: string) =>
    [`INSERT INTO erasures (erasure_id, user_id, requested_at) VALUES (gen_random_uuid(), $1, now())`, userId] as const;
  const blank = (conversationId: string, more = '') =>
    [
      `UPDATE messages SET erased_at = now(), ciphertext = '', signature = '', sender_user_id = '',
         sender_device_id = sequence::text, sender_counter = 0 ${more} WHERE conversation_id = $1`,
      conversationId,
    ] as const;

  it('to blank a message of anybody else, and to change one otherwise', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { conversation, session } = await createdBy(harness, alice.device, [bob]);
    const { conversationId } = conversation;
    await alice.device.client.sendMessage(message(alice.device, session, 0n));
    expect(isCheckViolation(await failureOf(blank(conversationId)), 'messages_never_change')).toBe(true);
    const others = await failureOf(note(bob.userId), blank(conversationId));
    expect(isCheckViolation(others, 'messages_never_change')).toBe(true);
    expect(await failureOf(note(alice.userId), blank(conversationId))).toBe('accepted');
    const moved = await failureOf(note(alice.userId), blank(conversationId, ', sequence = 7'));
    expect(isCheckViolation(moved, 'messages_never_change')).toBe(true);
    const twice = await failureOf(note(alice.userId), blank(conversationId), blank(conversationId));
    expect(isCheckViolation(twice, 'messages_never_change')).toBe(true);
    const half = await failureOf(note(alice.userId), [
      'UPDATE messages SET erased_at = now() WHERE conversation_id = $1',
      conversationId,
    ]);
    expect(isCheckViolation(half, 'messages_whole_or_erased')).toBe(true);
  });

  it('to forget a membership of anybody else, or one that has not ended', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { conversation } = await createdBy(harness, alice.device, [bob]);
    const { conversationId } = conversation;
    await alice.device.client.removeMembers(removing(alice.device, conversation, [bob.userId]));
    const forget = (userId: string) =>
      ['DELETE FROM memberships WHERE conversation_id = $1 AND user_id = $2', conversationId, userId] as const;
    const rule = 'memberships_go_with_erased_users';
    expect(isCheckViolation(await failureOf(forget(bob.userId)), rule)).toBe(true);
    expect(await failureOf(note(bob.userId), forget(bob.userId))).toBe('accepted');
    expect(isCheckViolation(await failureOf(note(alice.userId), forget(alice.userId)), rule)).toBe(true);
  });

  it('to close a conversation whose members are there, to open a closed one, and to write on in it', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { conversation } = await createdBy(harness, alice.device, [bob], { kind: ConversationKind.DIRECT });
    const { conversationId } = conversation;
    const close = [
      'UPDATE conversations SET closed_at = now(), direct_low = NULL, direct_high = NULL WHERE conversation_id = $1',
      conversationId,
    ] as const;
    const rule = 'conversations_closed_for_good';
    expect(isCheckViolation(await failureOf(close), rule)).toBe(true);
    expect(await failureOf(note(bob.userId), close)).toBe('accepted');
    for (const change of ['closed_at = NULL', 'last_sequence = last_sequence + 1']) {
      const changed = [`UPDATE conversations SET ${change} WHERE conversation_id = $1`, conversationId] as const;
      expect(isCheckViolation(await failureOf(note(bob.userId), close, changed), rule)).toBe(true);
    }
  });
});
