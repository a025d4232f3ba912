import { randomUUID } from 'node:crypto';
import { type Client, Code, createClient, type Transport } from '@connectrpc/connect';
import { ConversationService, HistoryPolicy, MemberRole } from '@keytrail/contracts';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  adding,
  changingPolicy,
  createdBy,
  creation,
  givingRoles,
  type Harness,
  message,
  refusalOf,
  removing,
  rotation,
  startHarness,
  type TestDevice,
} from './harness.ts';

type ConversationClient = Client<typeof ConversationService>;

let harness: Harness;
let alice: TestDevice;

beforeAll(async () => {
  harness = await startHarness();
  alice = (await harness.user()).device;
}, 120_000);

afterAll(() => harness?.[Symbol.asyncDispose]());

const wires = ['grpc', 'web'] as const;
const clientOn = (wire: (typeof wires)[number], device: TestDevice) => (wire === 'grpc' ? device.client : device.web);

const requestId = randomUUID();
const conversationId = randomUUID();
const good = {
  member: { userId: 'bob', role: MemberRole.MEMBER },
  change: { requestId, conversationId, expectedRosterVersion: 1n },
  send: {
    requestId,
    conversationId,
    sessionId: 'session_1',
    senderCounter: 0n,
    ciphertext: new Uint8Array(16),
    signature: new Uint8Array(64),
  },
};

/** One more than a bigint of the database holds. */
const aboveBigint = 2n ** 63n;
const placeToken = (place: string) => Buffer.from(place).toString('base64url');

type Attempt = (client: ConversationClient, request: ReturnType<typeof creation>['request']) => Promise<unknown>;

const bad: readonly (readonly [rpc: string, field: string, attempt: Attempt])[] = [
  ['CreateConversation', 'request_id', (c, r) => c.createConversation({ ...r, requestId: 'x' })],
  ['CreateConversation', 'kind', (c, r) => c.createConversation({ ...r, kind: 0 })],
  ['CreateConversation', 'kind', (c, r) => c.createConversation({ ...r, kind: 9 as 1 })],
  ['CreateConversation', 'members', (c, r) => c.createConversation({ ...r, members: [] })],
  [
    'CreateConversation',
    'members[0].user_id',
    (c, r) => c.createConversation({ ...r, members: [{ userId: 'no spaces', role: 1 }] }),
  ],
  [
    'CreateConversation',
    'members[0].role',
    (c, r) => c.createConversation({ ...r, members: [{ userId: 'bob', role: 0 }] }),
  ],
  [
    'CreateConversation',
    'initial_session',
    (c, { requestId: id, kind, members }) => c.createConversation({ requestId: id, kind, members }),
  ],
  [
    'CreateConversation',
    'initial_session.envelopes',
    (c, r) => c.createConversation({ ...r, initialSession: { ...r.initialSession, envelopes: [] } }),
  ],
  [
    'CreateConversation',
    'initial_session.envelopes[0].ciphertext',
    (c, r) =>
      c.createConversation({
        ...r,
        initialSession: {
          ...r.initialSession,
          envelopes: r.initialSession.envelopes.map((e) => ({ ...e, ciphertext: new Uint8Array(3) })),
        },
      }),
  ],
  [
    'RotateSession',
    'expected_epoch',
    (c, r) => c.rotateSession({ requestId, conversationId, expectedRosterVersion: 1n, session: r.initialSession }),
  ],
  ['RotateSession', 'session', (c) => c.rotateSession({ ...good.change, expectedEpoch: 1n })],
  [
    'RequestRotation',
    'conversation_id',
    (c) => c.requestRotation({ requestId, expectedEpoch: 1n, conversationId: 'x' }),
  ],
  ['RequestRotation', 'expected_epoch', (c) => c.requestRotation({ requestId, conversationId })],
  ['AddMembers', 'members', (c) => c.addMembers({ ...good.change, members: [] })],
  ['AddMembers', 'members[1].user_id', (c) => c.addMembers({ ...good.change, members: [good.member, good.member] })],
  ['AddMembers', 'expected_roster_version', (c) => c.addMembers({ requestId, conversationId, members: [good.member] })],
  ['RemoveMembers', 'user_ids', (c) => c.removeMembers({ ...good.change, userIds: [] })],
  ['RemoveMembers', 'user_ids', (c) => c.removeMembers({ ...good.change, userIds: ['a', 'a'] })],
  ['RemoveMembers', 'user_ids[0]', (c) => c.removeMembers({ ...good.change, userIds: ["a'; DROP TABLE x"] })],
  ['GetConversation', 'conversation_id', (c) => c.getConversation({ conversationId: '' })],
  ['GetRotation', 'conversation_id', (c) => c.getRotation({ conversationId: 'x' })],
  ['DeclineRotation', 'conversation_id', (c) => c.declineRotation({ conversationId: '', expectedEpoch: 1n })],
  ['DeclineRotation', 'expected_epoch', (c) => c.declineRotation({ conversationId, expectedEpoch: 0n })],
  ['ListSessions', 'conversation_id', (c) => c.listSessions({ conversationId: 'x' })],
  ['ListSessions', 'page.size', (c) => c.listSessions({ page: { size: 201 } })],
  ['ListSessions', 'page.token', (c) => c.listSessions({ page: { token: 'not a token' } })],
  ['ListChanges', 'cursor', (c) => c.listChanges({ cursor: 'not a cursor' })],
  ['ListChanges', 'limit', (c) => c.listChanges({ limit: 501 })],
  ['ListConversations', 'page.size', (c) => c.listConversations({ page: { size: 201 } })],
  ['ListConversations', 'page.token', (c) => c.listConversations({ page: { token: 'x'.repeat(513) } })],
  ['ListConversations', 'page.token', (c) => c.listConversations({ page: { token: 'AAAA' } })],
  ...[
    '0000-01-01T00:00:00.000Z',
    '-000001-01-01T00:00:00.000Z',
    '+275760-09-13T00:00:00.000Z',
    '-1',
    '1e3',
    '',
    '99999999999999',
  ].map(
    (at) =>
      [
        'ListConversations',
        'page.token',
        (c: ConversationClient) => c.listConversations({ page: { token: placeToken(`${at} ${conversationId}`) } }),
      ] as const,
  ),
  ['ListConversations', 'page.token', (c) => c.listConversations({ page: { token: placeToken('1 no-uuid') } })],
  [
    'RequestRotation',
    'expected_epoch',
    (c) => c.requestRotation({ requestId, conversationId, expectedEpoch: aboveBigint }),
  ],
  [
    'AddMembers',
    'expected_roster_version',
    (c) => c.addMembers({ ...good.change, expectedRosterVersion: aboveBigint, members: [good.member] }),
  ],
  [
    'AddMembers',
    'members[0].from_epoch',
    (c) => c.addMembers({ ...good.change, members: [{ ...good.member, fromEpoch: aboveBigint }] }),
  ],
  [
    'RemoveMembers',
    'expected_roster_version',
    (c) => c.removeMembers({ ...good.change, expectedRosterVersion: aboveBigint, userIds: ['a'] }),
  ],
  ['SendMessage', 'sender_counter', (c) => c.sendMessage({ ...good.send, senderCounter: aboveBigint })],
  ['ListMessages', 'after_sequence', (c) => c.listMessages({ conversationId, afterSequence: aboveBigint })],
  ['SendMessage', 'session_id', (c) => c.sendMessage({ ...good.send, sessionId: 'a b' })],
  ['SendMessage', 'ciphertext', (c) => c.sendMessage({ ...good.send, ciphertext: new Uint8Array(15) })],
  ['SendMessage', 'ciphertext', (c) => c.sendMessage({ ...good.send, ciphertext: new Uint8Array(65_537) })],
  ['SendMessage', 'signature', (c) => c.sendMessage({ ...good.send, signature: new Uint8Array(63) })],
  ['SendMessage', 'sender_counter', (c) => c.sendMessage({ ...good.send, senderCounter: 2n ** 64n - 1n })],
  ['ListMessages', 'limit', (c) => c.listMessages({ conversationId, limit: 501 })],
  ['ListMessages', 'conversation_id', (c) => c.listMessages({ conversationId: 'x' })],
];

describe.each(wires)('bad input on %s', (wire) => {
  it.each(bad)('to %s is INVALID_ARGUMENT with the field %s', async (_rpc, field, attempt) => {
    const { request } = creation(harness, alice, []);
    const refusal = await refusalOf(attempt(clientOn(wire, alice), request));
    expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
    expect(refusal.fields.map((problem) => problem.field)).toContain(field);
  });
});

describe('what services alone may ask', () => {
  it.each([
    ['conversation_id', { sessionId: 's', userIds: ['a'] }],
    ['session_id', { conversationId, userIds: ['a'] }],
    ['user_ids', { conversationId, sessionId: 's' }],
  ])('CheckEntitlement refuses a bad %s', async (field, request) => {
    const refusal = await refusalOf(harness.services.checkEntitlement(request));
    expect(refusal).toMatchObject({ code: Code.InvalidArgument, fields: [{ field }] });
  });

  it.each([
    ['user_id', { userId: '', otherUserIds: ['a'] }],
    ['other_user_ids', { userId: 'a', otherUserIds: ['b', 'b'] }],
    ['other_user_ids[1]', { userId: 'a', otherUserIds: ['b', 'no spaces'] }],
  ])('ListSharedUsers refuses a bad %s', async (field, request) => {
    const refusal = await refusalOf(harness.services.listSharedUsers(request));
    expect(refusal).toMatchObject({ code: Code.InvalidArgument, fields: [{ field }] });
  });

  it.each(wires)('is refused to devices on %s', async (wire) => {
    const client = clientOn(wire, alice);
    const asked = { conversationId, sessionId: 's', userIds: ['a'] };
    expect(await refusalOf(client.checkEntitlement(asked))).toMatchObject({ reason: 'CALLER_NOT_ALLOWED' });
    expect(await refusalOf(client.listSharedUsers({ userId: 'a', otherUserIds: ['b'] }))).toMatchObject({
      reason: 'CALLER_NOT_ALLOWED',
    });
  });
});

describe.each(wires)('a stranger on %s', (wire) => {
  it('gets the same answer for a conversation that exists and for one that does not, from every method', async () => {
    const owner = (await harness.user()).device;
    const { conversation, session } = await createdBy(harness, owner, []);
    const stranger = (await harness.user()).device;
    const removed = await harness.user();
    const client = clientOn(wire, stranger);

    const ask = (id: string): Promise<unknown>[] => {
      const known = { ...conversation, conversationId: id };
      const { request } = rotation(harness, stranger, known, { conversationId: id });
      return [
        client.rotateSession(request),
        client.requestRotation({ requestId: randomUUID(), conversationId: id, expectedEpoch: 1n }),
        client.addMembers(adding(stranger, known, [{ userId: removed.userId, role: MemberRole.MEMBER }])),
        client.removeMembers(removing(stranger, known, [owner.userId])),
        client.changeRoles(givingRoles(stranger, known, [{ userId: owner.userId, role: MemberRole.MEMBER }])),
        client.changePolicy(changingPolicy(stranger, known, { historyPolicy: HistoryPolicy.SHARED })),
        client.listRosterChanges({ conversationId: id }),
        client.getConversation({ conversationId: id }),
        client.sendMessage(message(stranger, { ...session, conversationId: id }, 0n)),
        client.listMessages({ conversationId: id }),
      ];
    };
    const there = await Promise.all(ask(conversation.conversationId).map(refusalOf));
    const nowhere = await Promise.all(ask(randomUUID()).map(refusalOf));
    const seen = [...there, ...nowhere].map(({ code, reason, message: text, metadata, fields }) => ({
      code,
      reason,
      text,
      metadata,
      fields,
    }));
    for (const answer of seen)
      expect(answer).toEqual({
        code: Code.NotFound,
        reason: 'NOT_FOUND_OR_NOT_PERMITTED',
        text: seen[0]?.text,
        metadata: {},
        fields: [],
      });
  });

  it('is also whoever was removed', async () => {
    const owner = (await harness.user()).device;
    const former = await harness.user();
    const { conversation } = await createdBy(harness, owner, [former]);
    await owner.client.removeMembers(removing(owner, conversation, [former.userId]));
    const client = clientOn(wire, former.device);
    const asked = { conversationId: conversation.conversationId };
    expect(await refusalOf(client.getConversation(asked))).toMatchObject({ reason: 'NOT_FOUND_OR_NOT_PERMITTED' });
    expect(await refusalOf(client.listMessages(asked))).toMatchObject({ reason: 'NOT_FOUND_OR_NOT_PERMITTED' });
  });
});

it('asks nobody without a token', async () => {
  const anonymous = (transport: Transport) => createClient(ConversationService, transport);
  const { createGrpcTransport } = await import('@keytrail/rpc');
  const transport = createGrpcTransport({ target: harness.grpcTarget });
  try {
    expect(await refusalOf(anonymous(transport).getConversation({ conversationId }))).toMatchObject({
      reason: 'TOKEN_MISSING',
    });
  } finally {
    transport.close();
  }
});
