import { randomUUID } from 'node:crypto';
import { ConversationKind, HistoryPolicy, MemberRole, RotationDueReason } from '@keytrail/contracts';
import { refuse } from '@keytrail/rpc';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createdBy, creation, gateAt, type Harness, refusalOf, removing, startHarness } from './harness.ts';

let harness: Harness;

beforeAll(async () => {
  harness = await startHarness();
}, 120_000);

afterEach(() => {
  harness.atFaultPoint = async () => {};
  harness.beforeStore = async () => {};
});

afterAll(() => harness?.[Symbol.asyncDispose]());

async function rowsOf(conversationId: string) {
  const tables = ['conversations', 'epochs', 'memberships', 'session_decisions', 'candidates', 'outbox'] as const;
  const counts: Record<string, number> = {};
  for (const table of tables) {
    const column = table === 'outbox' ? 'aggregate = $1' : 'conversation_id = $1::uuid';
    const rows = await harness.query<{ n: bigint }>(
      `SELECT count(*) AS n FROM ${table} WHERE ${column}`,
      conversationId,
    );
    counts[table] = Number(rows[0]?.n ?? 0n);
  }
  return counts;
}

const nothing = { conversations: 0, epochs: 0, memberships: 0, session_decisions: 0, outbox: 0 };

describe('a new conversation', () => {
  it('is there with its session, and every member sees the same', async () => {
    const [alice, bob] = [await harness.user(2), await harness.user(1)];
    const { request, session } = creation(harness, alice.device, [bob]);
    const { conversation, envelopesWritten } = await alice.device.client.createConversation(request);

    expect(envelopesWritten).toBe(3);
    expect(conversation).toMatchObject({
      conversationId: session.conversationId,
      kind: ConversationKind.GROUP,
      epoch: 1n,
      sessionId: session.sessionId,
      rosterVersion: 1n,
      historyPolicy: HistoryPolicy.OWN_MEMBERSHIP,
      rotationDue: RotationDueReason.UNSPECIFIED,
      lastSequence: 0n,
    });
    expect(conversation?.headerHash).toEqual(session.headerHash);
    const seen = await bob.device.client.getConversation({ conversationId: session.conversationId });
    expect(seen.conversation).toEqual(conversation);
    const overWeb = await bob.device.web.getConversation({ conversationId: session.conversationId });
    expect(overWeb.conversation).toEqual(conversation);
    expect(await rowsOf(session.conversationId)).toMatchObject({ candidates: 0, epochs: 1, memberships: 2 });
    const [stored] = [...harness.stored.values()].filter((s) => s.conversationId === session.conversationId);
    expect(stored?.rosterDevices).toHaveLength(3);
  });

  it('allows a member without devices, pinned at version 0', async () => {
    const alice = await harness.user();
    const { conversation } = await createdBy(harness, alice.device, [{ userId: `nobody-${randomUUID()}` }]);
    expect(conversation.members).toHaveLength(2);
  });

  it('of a thousand members is one call, and so is leaving it', async () => {
    const alice = await harness.user();
    const others = Array.from({ length: 999 }, (_, index) => ({ userId: `member-${index}-${randomUUID()}` }));
    const { conversation } = await createdBy(harness, alice.device, others);
    expect(conversation.members).toHaveLength(1000);
    const { conversationId } = conversation;
    const seen = await alice.device.web.getConversation({ conversationId });
    expect(seen.conversation).toEqual(conversation);
    const left = await alice.device.client.removeMembers(removing(alice.device, conversation, [alice.userId]));
    expect(left.conversation?.members.filter(({ role }) => role === MemberRole.ADMIN)).toHaveLength(1);
  });

  it('gives the first answer to the same request again, and to two at once', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { request } = creation(harness, alice.device, [bob]);
    const [first, second] = await Promise.all([
      alice.device.client.createConversation(request),
      alice.device.client.createConversation(request),
    ]);
    expect(second).toEqual(first);
    expect(await alice.device.client.createConversation(request)).toEqual(first);
  });

  it('refuses the same request id with other content', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { request } = creation(harness, alice.device, [bob]);
    await alice.device.client.createConversation(request);
    const other = creation(harness, alice.device, [bob], { requestId: request.requestId });
    expect(await refusalOf(alice.device.client.createConversation(other.request))).toMatchObject({
      reason: 'REQUEST_ID_REUSED',
      metadata: { request_id: request.requestId },
    });
  });
});

describe('a header that disagrees with the request', () => {
  const cases = [
    ['conversation_id', { conversationId: randomUUID() }],
    ['epoch', { epoch: 2n, previousHeaderHash: new Uint8Array(32) }],
    ['roster_version', { rosterVersion: 2n }],
    ['roster_hash', { rosterHash: new Uint8Array(32) }],
    ['device_lists', { deviceLists: [] }],
    ['initiator', { initiator: { userId: 'mallory', deviceId: 'phone' } }],
    ['initiator_identity_key', { initiatorIdentityKey: new Uint8Array(32).fill(9) }],
  ] as const;
  it.each(cases)('is refused: %s', async (field, header) => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { request, session } = creation(harness, alice.device, [bob], { header });
    const refusal = await refusalOf(alice.device.client.createConversation(request));
    expect(refusal).toMatchObject({ reason: 'HEADER_MISMATCH', metadata: { field } });
    expect(await rowsOf(session.conversationId)).toMatchObject({ ...nothing, candidates: 0 });
  });

  it('is refused: signed by a key that is not the registered one of the calling device', async () => {
    const [alice, bob] = [await harness.user(2), await harness.user()];
    const [phone, laptop] = alice.devices;
    if (!phone || !laptop) throw new Error('two devices');
    const swapped = { ...phone, signingKey: laptop.signingKey };
    const { request } = creation(harness, swapped, [bob], {
      header: { initiatorSigningKey: laptop.signingKey.publicKey },
    });
    expect(await refusalOf(phone.client.createConversation(request))).toMatchObject({
      reason: 'HEADER_MISMATCH',
      metadata: { field: 'initiator_signing_key' },
    });
    const forged = creation(harness, swapped, [bob], {
      header: { initiatorSigningKey: phone.signingKey.publicKey },
    });
    expect(await refusalOf(phone.client.createConversation(forged.request))).toMatchObject({
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'initial_session.signed_header.signature' },
    });
  });

  it('is refused: a certificate that is not the registered one', async () => {
    const alice = await harness.user(2);
    const [, laptop] = alice.devices;
    const { request } = creation(harness, alice.device, []);
    if (laptop) request.initialSession.initiatorCertificate = laptop.certificate;
    expect(await refusalOf(alice.device.client.createConversation(request))).toMatchObject({
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'initial_session.initiator_certificate' },
    });
  });

  it('is refused: not a header at all', async () => {
    const alice = await harness.user();
    const { request } = creation(harness, alice.device, []);
    const { signedHeader } = request.initialSession;
    if (signedHeader) signedHeader.header = new Uint8Array([255, 255, 255]);
    const refusal = await refusalOf(alice.device.client.createConversation(request));
    expect(refusal.fields[0]?.field).toBe('initial_session.signed_header.header');
  });
});

describe('a session that does not cover its roster', () => {
  it('is refused with the devices that are missing and those that are unexpected', async () => {
    const [alice, bob, eve] = [await harness.user(2), await harness.user(), await harness.user()];
    const [, laptop] = alice.devices;
    const { request } = creation(harness, alice.device, [bob], {
      recipients: [alice.device, bob.device, eve.device, bob.device],
    });
    const refusal = await refusalOf(alice.device.client.createConversation(request));
    expect(refusal).toMatchObject({ reason: 'SESSION_INCOMPLETE' });
    expect(refusal.message).toContain('1 missing, 2 unexpected, 0 stale');
    expect(laptop).toBeDefined();
  });

  it('is refused when a device list moved since it was read', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { request } = creation(harness, alice.device, [bob]);
    await harness.addDevice(bob);
    const refusal = await refusalOf(alice.device.client.createConversation(request));
    expect(refusal.message).toContain('1 missing, 0 unexpected, 1 stale');
  });

  it('is refused when it seals to a revoked device', async () => {
    const [alice, bob] = [await harness.user(), await harness.user(2)];
    const recipients = harness.activeDevices([alice.userId, bob.userId]);
    harness.revoke(bob.device);
    const { request } = creation(harness, alice.device, [bob], { recipients });
    expect((await refusalOf(alice.device.client.createConversation(request))).message).toContain('1 unexpected');
  });

  it('is refused for a device that is not registered, and for one that was revoked', async () => {
    const [alice, bob] = [await harness.user(2), await harness.user()];
    harness.revoke(alice.device);
    const { request } = creation(harness, alice.device, [bob]);
    expect(await refusalOf(alice.device.client.createConversation(request))).toMatchObject({
      reason: 'DEVICE_REVOKED',
      metadata: { device_id: alice.device.deviceId },
    });
  });
});

it('tells what the service session finds wrong in the words of the request', async () => {
  const alice = await harness.user();
  const { request } = creation(harness, alice.device, []);
  harness.beforeStore = async () => {
    throw refuse('SIGNATURE_INVALID', 'session.envelopes[0].signature does not verify', {
      metadata: { field: 'session.envelopes[0].signature' },
    });
  };
  expect(await refusalOf(alice.device.client.createConversation(request))).toMatchObject({
    reason: 'SIGNATURE_INVALID',
    message: 'initial_session.envelopes[0].signature does not verify',
    metadata: { field: 'initial_session.envelopes[0].signature' },
  });
});

describe('a direct conversation', () => {
  it('is one per pair: of two at once one wins, and the other is told which', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const kind = ConversationKind.DIRECT;
    const attempts = await Promise.allSettled([
      alice.device.client.createConversation(creation(harness, alice.device, [bob], { kind }).request),
      bob.device.client.createConversation(creation(harness, bob.device, [alice], { kind }).request),
    ]);
    const [winner] = attempts.filter((attempt) => attempt.status === 'fulfilled');
    const [loser] = attempts.filter((attempt) => attempt.status === 'rejected');
    const conversationId = winner?.value.conversation?.conversationId;
    expect(conversationId).toBeDefined();
    const refusal = await refusalOf(Promise.reject(loser?.reason));
    expect(refusal).toMatchObject({
      reason: 'DIRECT_CONVERSATION_EXISTS',
      metadata: { conversation_id: conversationId },
    });
    const again = creation(harness, bob.device, [alice], { kind });
    expect(await refusalOf(bob.device.client.createConversation(again.request))).toMatchObject({
      reason: 'DIRECT_CONVERSATION_EXISTS',
      metadata: { conversation_id: conversationId },
    });
  });

  it('has one winner also when both are stored before either commits', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const kind = ConversationKind.DIRECT;
    const gate = gateAt('conversation.before-commit');
    let waiting = 0;
    harness.atFaultPoint = async (point) => {
      if (point !== 'conversation.before-commit') return;
      waiting += 1;
      if (waiting === 2) gate.open();
      await gate.at(point);
    };
    const attempts = await Promise.allSettled([
      alice.device.client.createConversation(creation(harness, alice.device, [bob], { kind }).request),
      bob.device.client.createConversation(creation(harness, bob.device, [alice], { kind }).request),
    ]);
    expect(attempts.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
  });
});

describe('a creation that fails on the way', () => {
  it('leaves nothing visible, and the same request finishes it', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { request, session } = creation(harness, alice.device, [bob]);
    harness.atFaultPoint = async (point) => {
      if (point === 'conversation.after-store-session') throw new Error('the power is gone');
    };
    expect(await refusalOf(alice.device.client.createConversation(request))).toMatchObject({
      reason: 'INTERNAL_FAULT',
    });
    expect(await rowsOf(session.conversationId)).toMatchObject({ ...nothing, candidates: 1 });
    expect(
      await refusalOf(bob.device.client.getConversation({ conversationId: session.conversationId })),
    ).toMatchObject({
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
    });

    harness.atFaultPoint = async () => {};
    const { conversation } = await alice.device.client.createConversation(request);
    expect(conversation?.sessionId).toBe(session.sessionId);
    expect(await rowsOf(session.conversationId)).toMatchObject({ candidates: 0, conversations: 1 });
  });

  it('is cleaned up by the reconciler, and may start again with a new session', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { request, session } = creation(harness, alice.device, [bob]);
    harness.atFaultPoint = async (point) => {
      if (point === 'conversation.after-store-session') throw new Error('the power is gone');
    };
    await refusalOf(alice.device.client.createConversation(request));
    harness.atFaultPoint = async () => {};
    const key = `${session.conversationId}/${session.sessionId}`;
    expect(harness.stored.has(key)).toBe(true);
    await harness.reconcile();
    expect(harness.stored.has(key)).toBe(false);
    expect(await rowsOf(session.conversationId)).toMatchObject({
      candidates: 0,
      conversations: 0,
      session_decisions: 1,
    });

    expect(await refusalOf(alice.device.client.createConversation(request))).toMatchObject({
      reason: 'SESSION_ABORTED',
      metadata: { session_id: session.sessionId },
    });
    const anew = creation(harness, alice.device, [bob], { requestId: request.requestId });
    const { conversation } = await alice.device.client.createConversation(anew.request);
    expect(conversation?.conversationId).toBe(session.conversationId);
    expect(conversation?.sessionId).toBe(anew.session.sessionId);
  });

  it('collides with the reconciler in one place: a late commit is told that it was given up', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { request, session } = creation(harness, alice.device, [bob]);
    const gate = gateAt('conversation.before-commit');
    harness.atFaultPoint = gate.at;
    const late = refusalOf(alice.device.client.createConversation(request));
    await gate.reached;
    expect(await harness.reconcile()).toMatchObject({ aborted: 1 });
    gate.open();
    expect(await late).toMatchObject({ reason: 'SESSION_ABORTED' });
    expect(await rowsOf(session.conversationId)).toMatchObject({ conversations: 0, epochs: 0 });
  });

  it('is either whole or aborted when commits and reconcilers race', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const started = Array.from({ length: 12 }, () => creation(harness, alice.device, [bob]));
    const [outcomes] = await Promise.all([
      Promise.allSettled(started.map(({ request }) => alice.device.client.createConversation(request))),
      ...Array.from({ length: 12 }, () => harness.reconcile()),
    ]);
    for (const [index, outcome] of outcomes.entries()) {
      const conversationId = started[index]?.session.conversationId ?? '';
      const key = `${conversationId}/${started[index]?.session.sessionId}`;
      const rows = await rowsOf(conversationId);
      if (outcome.status === 'fulfilled') {
        expect(rows).toMatchObject({ conversations: 1, epochs: 1, memberships: 2, session_decisions: 1 });
        expect(harness.stored.has(key)).toBe(true);
      } else {
        expect(await refusalOf(Promise.reject(outcome.reason))).toMatchObject({ reason: 'SESSION_ABORTED' });
        expect(rows).toMatchObject({ conversations: 0, epochs: 0, memberships: 0, session_decisions: 1 });
      }
    }
    const ages = await harness.query<{ n: bigint }>('SELECT count(*) AS n FROM candidates');
    await harness.reconcile();
    expect(Number(ages[0]?.n ?? 0n)).toBeLessThanOrEqual(12);
    expect(await harness.query('SELECT 1 FROM candidates')).toHaveLength(0);
  });

  it('keeps a candidate whose session could not be discarded for the next round', async () => {
    const alice = await harness.user();
    const { request, session } = creation(harness, alice.device, []);
    harness.beforeStore = async () => {
      throw new Error('the disk is full');
    };
    expect(await refusalOf(alice.device.client.createConversation(request))).toMatchObject({
      reason: 'INTERNAL_FAULT',
    });
    expect(await rowsOf(session.conversationId)).toMatchObject({ ...nothing, candidates: 1 });
    expect(await harness.reconcile(3_600_000)).toEqual({ aborted: 0, committed: 0, failed: 0 });
    await harness.reconcile();
  });
});

describe('a roster that cannot be', () => {
  it.each([
    ['members[1].user_id', (me: string) => [member(me, MemberRole.ADMIN), member(me, MemberRole.MEMBER)]],
    ['members', () => [member('somebody', MemberRole.ADMIN)]],
    ['members[0].role', (me: string) => [member(me, MemberRole.MEMBER)]],
  ] as const)('is refused: %s', async (field, membersFor) => {
    const alice = await harness.user();
    const { request } = creation(harness, alice.device, []);
    const refusal = await refusalOf(
      alice.device.client.createConversation({ ...request, members: [...membersFor(alice.userId)] }),
    );
    expect(refusal).toMatchObject({ reason: 'INVALID_FIELD', metadata: { field } });
  });

  it('is refused: a direct conversation of three', async () => {
    const [alice, bob, carol] = [await harness.user(), await harness.user(), await harness.user()];
    const { request } = creation(harness, alice.device, [bob, carol], { kind: ConversationKind.DIRECT });
    expect(await refusalOf(alice.device.client.createConversation(request))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'members' },
    });
  });

  function member(userId: string, role: MemberRole) {
    return { userId, role };
  }
});
