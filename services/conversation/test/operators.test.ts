import { randomUUID } from 'node:crypto';
import { toJsonString } from '@bufbuild/protobuf';
import { type Client, createClient } from '@connectrpc/connect';
import { operatorScope } from '@keytrail/auth';
import {
  ConversationOperatorService,
  DescribeConversationResponseSchema,
  HistoryPolicy,
  MemberRole,
} from '@keytrail/contracts';
import { purgeAuditLog } from '@keytrail/storage';
import { pseudonym } from '@keytrail/telemetry';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../../packages/cli/src/program.ts';
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
} from './harness.ts';

type Operator = Client<typeof ConversationOperatorService>;

let harness: Harness;
let operator: Operator;

beforeAll(async () => {
  harness = await startHarness();
  operator = createClient(ConversationOperatorService, await harness.asOperator());
}, 120_000);

afterAll(() => harness?.[Symbol.asyncDispose]());

const trace = expect.stringMatching(/^[0-9a-f]{32}$/);

/** Alice and Bob, two epochs and a message; Carol came in the second one, and has left. */
async function conversationWithHistory() {
  const [alice, bob, carol] = [await harness.user(), await harness.user(), await harness.user()];
  const created = await createdBy(harness, alice.device, [bob]);
  await alice.device.client.sendMessage(message(alice.device, created.session, 0n));
  const added = await alice.device.client.addMembers(
    adding(alice.device, created.conversation, [{ userId: carol.userId, role: MemberRole.MEMBER }]),
  );
  if (!added.conversation) throw new Error('no conversation');
  const second = await rotatedBy(harness, alice.device, added.conversation);
  const left = await alice.device.client.removeMembers(removing(alice.device, second.conversation, [carol.userId]));
  if (!left.conversation) throw new Error('no conversation');
  return { alice, bob, carol, first: created.session, second: second.session, conversation: left.conversation };
}

function auditOf(conversationId: string) {
  return harness.query(
    'SELECT operator, action, user_id, outcome, trace_id FROM audit_log WHERE conversation_id = $1 ORDER BY number',
    conversationId,
  );
}

describe('an operator', () => {
  it('sees who was a member from when to when, the epochs, and what is due, with builds and traces', async () => {
    const { alice, bob, carol, first, second, conversation } = await conversationWithHistory();
    const { conversationId } = conversation;
    const seen = await operator.describeConversation({ conversationId, sessionId: second.sessionId });
    expect(seen).toMatchObject({
      conversationId,
      type: 'GROUP',
      currentEpoch: 2n,
      currentSessionId: second.sessionId,
      rosterVersion: conversation.rosterVersion,
      historyPolicy: 'OWN_MEMBERSHIP',
      rotationDueReason: 'MEMBER_REMOVED',
      rotationDueSince: expect.anything(),
      rotationDueWriterBuild: expect.stringMatching(/./),
      rotationDueTraceId: trace,
      messages: 1n,
      writerBuild: expect.stringMatching(/./),
      traceId: trace,
      membershipsMore: false,
      epochsMore: false,
      epochGaps: [],
    });
    expect(seen.closedAt).toBeUndefined();
    const ofCarol = seen.memberships.find(({ userId }) => userId === carol.userId);
    expect(ofCarol).toMatchObject({
      role: 'MEMBER',
      joinedEpoch: 2n,
      leftEpoch: 2n,
      joinedAt: expect.anything(),
      leftAt: expect.anything(),
      traceId: trace,
      leftTraceId: expect.stringMatching(/^[0-9a-f]{32}$/),
      leftWriterBuild: expect.stringMatching(/./),
      userPseudonym: pseudonym(carol.userId),
    });
    expect(new Set(seen.memberships.slice(0, 2).map(({ userId }) => userId))).toEqual(
      new Set([alice.userId, bob.userId]),
    );
    for (const { leftEpoch, joinedEpoch, joinedAt, leftAt, leftTraceId } of seen.memberships.slice(0, 2))
      expect({ leftEpoch, joinedEpoch, joinedAt, leftAt, leftTraceId }).toEqual({
        leftTraceId: '',
        joinedEpoch: 1n,
        leftEpoch: 0n,
        joinedAt: expect.anything(),
        leftAt: undefined,
      });
    expect(seen.epochs).toMatchObject([
      {
        epoch: 2n,
        sessionId: second.sessionId,
        initiatorUserId: alice.userId,
        initiatorDeviceId: alice.device.deviceId,
        envelopesExpected: 3,
        traceId: trace,
      },
      { epoch: 1n, sessionId: first.sessionId, envelopesExpected: 2 },
    ]);
    expect(seen.askedSession).toMatchObject({ standing: 'committed', epoch: 2n, decidedAt: expect.anything() });

    const few = await operator.describeConversation({ conversationId, epochsMax: 1, userId: carol.userId });
    expect(few.epochs.map(({ epoch }) => epoch)).toEqual([2n]);
    expect(few.epochsMore).toBe(true);
    expect(few.memberships.map(({ userId }) => userId)).toEqual([carol.userId]);
    expect(few.askedSession).toBeUndefined();
    expect(await auditOf(conversationId)).toMatchObject([
      { operator: 'ops', action: 'describe_conversation', user_id: null, outcome: 'done', trace_id: trace },
      { user_id: carol.userId, outcome: 'done' },
    ]);
  });

  it('is told of what made a rotation due, whatever is written since, and of nothing where that was not written down', async () => {
    const { alice, carol, conversation } = await conversationWithHistory();
    const { conversationId } = conversation;
    const dave = await harness.user();
    await alice.device.client.addMembers(
      adding(alice.device, conversation, [{ userId: dave.userId, role: MemberRole.MEMBER }]),
    );
    const seen = await operator.describeConversation({ conversationId });
    const { leftTraceId, leftWriterBuild } = seen.memberships.find(({ userId }) => userId === carol.userId) ?? {};
    expect(seen).toMatchObject({ rotationDueTraceId: leftTraceId, rotationDueWriterBuild: leftWriterBuild });
    expect(seen.memberships.find(({ userId }) => userId === dave.userId)?.traceId).not.toBe(leftTraceId);
    await harness.query(
      'UPDATE rotations_due SET due_writer_build = NULL, due_trace_id = NULL WHERE conversation_id = $1',
      conversationId,
    );
    expect(await operator.describeConversation({ conversationId })).toMatchObject({
      rotationDueReason: 'MEMBER_REMOVED',
      rotationDueTraceId: '',
      rotationDueWriterBuild: '',
    });
  });

  it('is told of a session that never became an epoch: a candidate, then given up, also of a conversation that nobody can see', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { request, session } = creation(harness, alice.device, [bob], { historyPolicy: HistoryPolicy.SHARED });
    const { conversationId, sessionId } = session;
    harness.beforeStore = async () => {
      throw new Error('session is away');
    };
    await expect(alice.device.client.createConversation(request)).rejects.toThrow();
    harness.beforeStore = async () => {};
    const candidate = await operator.describeConversation({ conversationId, sessionId });
    expect(candidate).toMatchObject({ type: '', currentEpoch: 0n, memberships: [], epochs: [] });
    expect(candidate.askedSession).toMatchObject({
      standing: 'candidate',
      epoch: 0n,
      beganAt: expect.anything(),
      traceId: trace,
    });
    expect(await refusalOf(operator.describeConversation({ conversationId }))).toMatchObject({
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
      message: 'there is no such conversation',
      metadata: { field: 'conversation_id' },
    });
    expect(candidate.askedSession?.decidedAt).toBeUndefined();
    await harness.reconcile();
    expect((await operator.describeConversation({ conversationId, sessionId })).askedSession).toMatchObject({
      standing: 'aborted',
      decidedAt: expect.anything(),
    });
    expect(await auditOf(conversationId)).toMatchObject([
      { outcome: 'done' },
      { outcome: 'NOT_FOUND_OR_NOT_PERMITTED' },
      { outcome: 'done' },
    ]);
  });

  it('is told which epochs are gone, where somebody deleted rows under dropped constraints', async () => {
    const { alice, conversation, second } = await conversationWithHistory();
    const { conversationId } = conversation;
    const third = await rotatedBy(harness, alice.device, conversation);
    for (const change of [
      'ALTER TABLE conversations DROP CONSTRAINT conversations_epoch_has_session',
      'ALTER TABLE messages DROP CONSTRAINT messages_under_a_session',
      'ALTER TABLE epochs DROP CONSTRAINT epochs_chain',
    ])
      await harness.query(change);
    await harness.query('DELETE FROM epochs WHERE conversation_id = $1 AND epoch >= 2', conversationId);
    const damaged = await operator.describeConversation({ conversationId, sessionId: second.sessionId });
    expect(damaged).toMatchObject({
      currentEpoch: 0n,
      currentSessionId: third.session.sessionId,
      epochGaps: [3n, 2n],
      askedSession: { standing: 'lost', epoch: 0n },
    });
    await harness.query('DELETE FROM epochs WHERE conversation_id = $1', conversationId);
    expect((await operator.describeConversation({ conversationId })).epochGaps).toEqual([3n, 2n, 1n]);
  });

  it('gets typed refusals for bad input, and of what there is not one that names the field', async () => {
    const conversationId = randomUUID();
    const bad = [
      ['conversation_id', { conversationId: 'c' }],
      ['session_id', { conversationId, sessionId: 'a b' }],
      ['epochs_max', { conversationId, epochsMax: 201 }],
      ['user_id', { conversationId, userId: 'a b' }],
    ] as const;
    for (const [field, request] of bad) {
      const refusal = await refusalOf(operator.describeConversation(request));
      expect(refusal.reason).toBe('INVALID_FIELD');
      expect([refusal.metadata.field, ...refusal.fields.map((problem) => problem.field)]).toContain(field);
    }
    expect(await refusalOf(operator.describeConversation({ conversationId }))).toMatchObject({
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
      message: 'there is no such conversation',
      metadata: { field: 'conversation_id' },
    });
  });
});

describe('who may describe a conversation', () => {
  it('is an operator or session, whose calls are not written down twice, and nobody else', async () => {
    const { alice, conversation, first } = await conversationWithHistory();
    const { conversationId } = conversation;
    const session = createClient(ConversationOperatorService, harness.asService('session'));
    expect(await session.describeConversation({ conversationId })).toMatchObject({ type: 'GROUP' });
    expect(await auditOf(conversationId)).toEqual([]);
    const token = await harness.issuer.token(alice.device);
    for (const { transport, caller } of [
      { transport: harness.stranger.grpc, caller: 'device' },
      { transport: harness.asService('presence'), caller: 'presence' },
      { transport: harness.asService('identity-keys'), caller: 'identity-keys' },
      { transport: harness.stranger.web, caller: 'device' },
    ]) {
      const refused = createClient(ConversationOperatorService, transport).describeConversation({ conversationId });
      expect(await refusalOf(refused)).toMatchObject({ reason: 'CALLER_NOT_ALLOWED', metadata: { caller } });
    }
    const asMember = await fetch(`${harness.webUrl}/${ConversationOperatorService.typeName}/DescribeConversation`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
      body: JSON.stringify({ conversationId, sessionId: first.sessionId }),
    });
    expect(asMember.status).toBe(403);
    expect(await auditOf(conversationId)).toEqual([]);
  });

  it('gets no answer that could not be written down', async () => {
    const { conversation } = await conversationWithHistory();
    const { conversationId } = conversation;
    await harness.query('ALTER TABLE audit_log ADD CONSTRAINT full_now CHECK (false) NOT VALID');
    try {
      expect((await refusalOf(operator.describeConversation({ conversationId }))).reason).toBe('INTERNAL_FAULT');
    } finally {
      await harness.query('ALTER TABLE audit_log DROP CONSTRAINT full_now');
    }
  });
});

describe('what an operator is told', () => {
  it('has no key and no message in it', async () => {
    const { conversation } = await conversationWithHistory();
    const { conversationId } = conversation;
    const seen = toJsonString(
      DescribeConversationResponseSchema,
      await operator.describeConversation({ conversationId }),
    );
    const secrets = await harness.query<{ bytes: Buffer }>(
      `SELECT ciphertext AS bytes FROM messages WHERE conversation_id = $1 UNION ALL
       SELECT signature FROM messages WHERE conversation_id = $1 UNION ALL
       SELECT author_signing_key FROM roster_log WHERE conversation_id = $1 AND author_signing_key IS NOT NULL UNION ALL
       SELECT author_identity_key FROM roster_log WHERE conversation_id = $1 AND author_identity_key IS NOT NULL`,
      conversationId,
    );
    expect(secrets.length).toBeGreaterThan(3);
    for (const { bytes } of secrets)
      for (const text of [
        bytes.toString('base64').slice(0, 40),
        bytes.toString('hex'),
        bytes.toString('base64url').slice(0, 40),
      ])
        expect(seen).not.toContain(text);
  });
});

describe('the audit log', () => {
  it('takes no change, and loses only what is older than the retention', async () => {
    const { conversation } = await conversationWithHistory();
    const { conversationId } = conversation;
    await operator.describeConversation({ conversationId });
    for (const change of [
      `UPDATE audit_log SET note = 'another'`,
      'DELETE FROM audit_log',
      'TRUNCATE audit_log',
      `UPDATE audit_log SET happened_at = now() - interval '1 year'`,
    ])
      await expect(harness.query(change)).rejects.toMatchObject({ constraint: 'audit_log_only_grows' });
    await expect(
      harness.query(
        `INSERT INTO audit_log (operator, action, note, outcome, trace_id) VALUES ('', 'look', '', 'done', '')`,
      ),
    ).rejects.toMatchObject({ constraint: 'audit_log_operator_check' });
    const old = randomUUID();
    await harness.query(
      `INSERT INTO audit_log (operator, action, conversation_id, note, outcome, trace_id, happened_at)
       VALUES ('ops', 'describe_conversation', $1, '', 'done', '', now() - interval '31 days')`,
      old,
    );
    expect(await purgeAuditLog(harness.db, 60 * 86_400_000)).toBe(0);
    expect(await purgeAuditLog(harness.db, 1)).toBe(1);
    expect(await auditOf(old)).toEqual([]);
    expect(await auditOf(conversationId)).toHaveLength(1);
  });
});

describe('keytrail conversation', () => {
  async function keytrail(...args: string[]) {
    const ran = { out: '', err: '' };
    const code = await run(['conversation', ...args], {
      environment: {
        KEYTRAIL_CONVERSATION_TARGET: harness.grpcTarget,
        KEYTRAIL_OPERATOR_TOKEN: await harness.issuer.token({
          userId: 'ops',
          deviceId: 'console',
          scopes: [operatorScope],
        }),
      },
      out(text) {
        ran.out += text;
      },
      say(text) {
        ran.err += text;
      },
    });
    return { code, ...ran };
  }

  it('ends with 0 when it is whole, and with 1 when there is no such conversation, or no such session of it', async () => {
    const { conversation, second } = await conversationWithHistory();
    const { conversationId } = conversation;
    const { sessionId } = second;
    expect(await keytrail(conversationId, '--session', sessionId)).toMatchObject({
      code: 0,
      err: '',
      out: expect.stringContaining(`${sessionId}: committed`),
    });
    const unknown = randomUUID();
    expect(await keytrail(conversationId, '--session', unknown)).toMatchObject({
      code: 1,
      err: `--session: nothing is known of the session ${unknown}\n`,
      out: expect.stringContaining(conversationId),
    });
    const nothing = await keytrail(randomUUID());
    expect(nothing).toMatchObject({ code: 1, out: '' });
    expect(nothing.err).toMatch(
      /^keytrail: NOT_FOUND_OR_NOT_PERMITTED: there is no such conversation \(field=conversation_id\)\ntrace id [0-9a-f]{32}$/m,
    );
  });
});
