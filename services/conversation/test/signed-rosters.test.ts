import { randomUUID } from 'node:crypto';
import { type Conversation, HistoryPolicy, MemberRole, RotationDueReason } from '@keytrail/contracts';
import { emptyRoster, foldRoster, rosterHash, verifyRosterChange } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  adding,
  adminsOnly,
  changingPolicy,
  createdBy,
  creation,
  givingRoles,
  type Harness,
  message,
  refusalOf,
  removing,
  rotatedBy,
  signedChange,
  startHarness,
  type TestDevice,
  type TestUser,
} from './harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness();
}, 60_000);
afterAll(() => harness?.[Symbol.asyncDispose]());

const { ADMIN, MEMBER } = MemberRole;
const everybody = { addMembers: MEMBER, removeMembers: MEMBER, changePolicy: MEMBER };

async function group(options: Parameters<typeof createdBy>[3] = {}) {
  const [alice, bob, carol] = [await harness.user(), await harness.user(), await harness.user()];
  const { conversation, session } = await createdBy(harness, alice.device, [bob, carol], options);
  return { alice, bob, carol, conversation, session };
}

function whole(answer: { conversation?: Conversation | undefined }): Conversation {
  if (!answer.conversation) throw new Error('no conversation in the answer');
  return answer.conversation;
}

const member = ({ userId }: TestUser, role: MemberRole = MEMBER) => ({ userId, role });

async function folded({ client }: TestDevice, conversationId: string) {
  const { entries, more } = await client.listRosterChanges({ conversationId });
  expect(more).toBe(false);
  return entries.reduce((state, entry) => {
    if (entry.signedChange) verifyRosterChange(nodePrimitives, entry.signedChange);
    return foldRoster(state, entry);
  }, emptyRoster(conversationId));
}

describe('the log of a roster', () => {
  it('is what members come to the same roster by that the service tells, over every kind of change', async () => {
    const { alice, bob, carol, conversation } = await group();
    const { conversationId } = conversation;
    const dave = await harness.user();
    let known = whole(await alice.device.client.addMembers(adding(alice.device, conversation, [member(dave)])));
    known = whole(await alice.device.client.changeRoles(givingRoles(alice.device, known, [member(bob, ADMIN)])));
    known = whole(await bob.device.client.changePolicy(changingPolicy(bob.device, known, { permissions: everybody })));
    known = whole(await carol.device.client.removeMembers(removing(carol.device, known, [dave.userId])));
    known = whole(await alice.device.client.removeMembers(removing(alice.device, known, [alice.userId])));
    const state = await folded(bob.device, conversationId);
    expect(state).toMatchObject({ version: 6n, permissions: everybody });
    expect(rosterHash(state.members)).toEqual(rosterHash(known.members));
    const seen = whole(await bob.device.web.getConversation({ conversationId }));
    expect(seen).toEqual(known);
    expect({ head: state.head, permissions: state.permissions }).toMatchObject({
      head: seen.rosterHead,
      permissions: everybody,
    });
  });

  it('is paged, and read by who left up to the change that ended the membership', async () => {
    const { alice, bob, conversation } = await group();
    const { conversationId } = conversation;
    const left = whole(await bob.device.client.removeMembers(removing(bob.device, conversation, [bob.userId])));
    await alice.device.client.changePolicy(changingPolicy(alice.device, left, { permissions: everybody }));
    const pages = async (device: TestDevice, afterVersion: bigint) => {
      const { entries, more } = await device.client.listRosterChanges({ conversationId, afterVersion, limit: 1 });
      return [entries.map(({ rosterVersion }) => rosterVersion), more];
    };
    expect(await pages(alice.device, 1n)).toEqual([[2n], true]);
    expect(await pages(alice.device, 2n)).toEqual([[3n], false]);
    expect(await pages(bob.device, 1n)).toEqual([[2n], false]);
    expect(await pages(bob.device, 2n)).toEqual([[], false]);
  });

  it('has one next version for two who change the roster at once, and the same answer for one who asks twice', async () => {
    const { alice, bob, carol, conversation } = await group({ permissions: everybody });
    const [dave, erin] = [await harness.user(), await harness.user()];
    const requests = [
      () => bob.device.client.addMembers(adding(bob.device, conversation, [member(dave)])),
      () => carol.device.client.addMembers(adding(carol.device, conversation, [member(erin)])),
      () => alice.device.client.changePolicy(changingPolicy(alice.device, conversation, { permissions: adminsOnly })),
    ];
    const results = await Promise.allSettled(requests.map((request) => request()));
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    expect((await folded(alice.device, conversation.conversationId)).version).toBe(2n);
    const now = whole(await alice.device.client.getConversation({ conversationId: conversation.conversationId }));
    const again = givingRoles(alice.device, now, [member(bob, ADMIN)]);
    expect(await alice.device.client.changeRoles(again)).toEqual(await alice.device.client.changeRoles(again));
    expect((await folded(alice.device, conversation.conversationId)).version).toBe(3n);
  });
});

describe('a signed change that does not say what is asked', () => {
  it('is refused, with the field that disagrees', async () => {
    const { alice, bob, conversation } = await group();
    const [dave, erin] = [await harness.user(), await harness.user()];
    const request = adding(alice.device, conversation, [member(dave)]);
    const said = (...args: Parameters<typeof signedChange> extends [unknown, unknown, ...infer Rest] ? Rest : never) =>
      signedChange(alice.device, conversation, ...args);
    const added = [member(dave)];
    for (const [field, signed] of [
      ['conversation_id', said({ added }, { conversationId: randomUUID() })],
      ['roster_version', said({ added }, { rosterVersion: 3n })],
      ['previous_hash', said({ added }, { previousHash: new Uint8Array(32) })],
      ['added', said({ added: [member(erin)] })],
      ['added', said({ added: [member(dave, ADMIN)] })],
      ['added', said({ added: [...added, member(erin)] })],
      ['removed', said({ added, removed: [bob.userId] })],
      ['roles', said({ added, roles: [member(bob, ADMIN)] })],
      ['permissions', said({ added, permissions: everybody })],
      ['history_policy', said({ added, historyPolicy: HistoryPolicy.SHARED })],
      ['author', signedChange(bob.device, conversation, { added })],
    ] as const) {
      const refusal = await refusalOf(alice.device.client.addMembers({ ...request, signedChange: signed }));
      expect(refusal).toMatchObject({ reason: 'ROSTER_CHANGE_MISMATCH', metadata: { field } });
    }
    expect((await folded(alice.device, conversation.conversationId)).version).toBe(1n);
  });

  it('is refused when it is absent, by another key, with another certificate, or no change at all', async () => {
    const { alice, bob, conversation } = await group();
    const dave = await harness.user();
    const { client } = alice.device;
    const request = adding(alice.device, conversation, [member(dave)]);
    const { signedChange: signed, ...unsigned } = request;
    const field = { reason: 'INVALID_FIELD', fields: [{ field: 'signed_change' }] };
    expect(await refusalOf(client.addMembers(unsigned))).toMatchObject(field);
    expect(await refusalOf(client.removeMembers({ ...unsigned, userIds: [bob.userId] }))).toMatchObject(field);
    const refusedFor = async (altered: Partial<typeof signed>) =>
      (await refusalOf(client.addMembers({ ...request, signedChange: { ...signed, ...altered } }))).reason;
    expect(await refusedFor({ signature: new Uint8Array(64).fill(1) })).toBe('SIGNATURE_INVALID');
    expect(await refusedFor({ authorSigningKey: bob.device.signingKey.publicKey })).toBe('ROSTER_CHANGE_MISMATCH');
    expect(await refusedFor({ authorCertificate: bob.device.certificate })).toBe('CERTIFICATE_INVALID');
    expect(await refusedFor({ change: new Uint8Array([255]) })).toBe('INVALID_FIELD');
  });

  it('makes no conversation: without it, or of another roster or policy than that of the session', async () => {
    const [alice, bob] = [await harness.user(), await harness.user()];
    const { client } = alice.device;
    const { signedRoster: _, ...unsigned } = creation(harness, alice.device, [bob]).request;
    const absent = await refusalOf(client.createConversation(unsigned));
    expect(absent).toMatchObject({ reason: 'INVALID_FIELD', fields: [{ field: 'signed_roster' }] });
    for (const [field, roster] of [
      ['added', { added: [member(alice, ADMIN)] }],
      ['history_policy', { historyPolicy: HistoryPolicy.SHARED }],
      ['permissions', { permissions: undefined }],
      ['previous_hash', { previousHash: new Uint8Array(32) }],
    ] as const) {
      const { request } = creation(harness, alice.device, [bob], { roster });
      expect(await refusalOf(client.createConversation(request))).toMatchObject({
        reason: 'ROSTER_CHANGE_MISMATCH',
        metadata: { field },
      });
    }
  });
});

describe('roles', () => {
  it('are given by admins alone, and leave one', async () => {
    const { alice, bob, carol, conversation } = await group({ permissions: everybody });
    const { client } = alice.device;
    const promote = bob.device.client.changeRoles(givingRoles(bob.device, conversation, [member(bob, ADMIN)]));
    expect((await refusalOf(promote)).reason).toBe('ROLE_NOT_SUFFICIENT');
    const abdicate = client.changeRoles(givingRoles(alice.device, conversation, [member(alice)]));
    expect((await refusalOf(abdicate)).reason).toBe('MEMBER_STATE_CONFLICT');
    const handed = whole(
      await client.changeRoles(givingRoles(alice.device, conversation, [member(alice), member(carol, ADMIN)])),
    );
    expect(handed.members.find(({ userId }) => userId === alice.userId)?.role).toBe(MEMBER);
    expect(handed.rotationDue).toBe(RotationDueReason.UNSPECIFIED);
    const late = client.removeMembers(removing(alice.device, handed, [carol.userId]));
    expect((await refusalOf(late)).reason).toBe('ROLE_NOT_SUFFICIENT');
  });

  it('allow members what the permissions say, and nothing that makes or removes an admin', async () => {
    const { alice, bob, carol, conversation } = await group({ permissions: everybody });
    const { client } = bob.device;
    const dave = await harness.user();
    const crown = client.addMembers(adding(bob.device, conversation, [member(dave, ADMIN)]));
    expect((await refusalOf(crown)).reason).toBe('ROLE_NOT_SUFFICIENT');
    const depose = client.removeMembers(removing(bob.device, conversation, [alice.userId]));
    expect((await refusalOf(depose)).reason).toBe('ROLE_NOT_SUFFICIENT');
    const grown = whole(await client.addMembers(adding(bob.device, conversation, [member(dave)])));
    const shrunk = whole(await client.removeMembers(removing(bob.device, grown, [carol.userId])));
    expect(shrunk.members.map(({ userId }) => userId)).not.toContain(carol.userId);
  });
});

describe('a changed history policy', () => {
  it('is for the epochs to come: it opens none before, and a rotation is due', async () => {
    const { alice, bob, conversation, session } = await group();
    const { conversationId } = conversation;
    await alice.device.client.sendMessage(message(alice.device, session, 0n));
    const shared = changingPolicy(alice.device, conversation, { historyPolicy: HistoryPolicy.SHARED });
    expect(
      (await refusalOf(bob.device.client.changePolicy(changingPolicy(bob.device, conversation, { historyPolicy: 2 }))))
        .reason,
    ).toBe('ROLE_NOT_SUFFICIENT');
    const changed = whole(await alice.device.client.changePolicy(shared));
    expect(changed).toMatchObject({
      historyPolicy: HistoryPolicy.SHARED,
      rotationDue: RotationDueReason.POLICY_CHANGED,
    });
    const open = await rotatedBy(harness, alice.device, changed);
    await alice.device.client.sendMessage(message(alice.device, open.session, 0n));
    const dave = await harness.user();
    const grown = whole(await alice.device.client.addMembers(adding(alice.device, open.conversation, [member(dave)])));
    expect(grown.rotationDue).toBe(RotationDueReason.UNSPECIFIED);
    const entitled = async (sessionId: string) =>
      (await harness.services.checkEntitlement({ conversationId, sessionId, userIds: [dave.userId] })).entitlements[0]
        ?.entitled;
    expect([await entitled(session.sessionId), await entitled(open.session.sessionId)]).toEqual([false, true]);
    const { messages } = await dave.device.client.listMessages({ conversationId });
    expect(messages.map(({ epoch }) => epoch)).toEqual([2n]);
    const { sessions } = await dave.device.client.listSessions({ conversationId });
    expect(sessions.map(({ epoch }) => epoch)).toEqual([2n]);

    const back = changingPolicy(alice.device, grown, { historyPolicy: HistoryPolicy.OWN_MEMBERSHIP });
    const closed = await rotatedBy(harness, alice.device, whole(await alice.device.client.changePolicy(back)));
    expect(await entitled(open.session.sessionId)).toBe(true);
    const erin = await harness.user();
    await alice.device.client.addMembers(adding(alice.device, closed.conversation, [member(erin)]));
    expect((await erin.device.client.listMessages({ conversationId })).messages.map(({ epoch }) => epoch)).toEqual([
      2n,
    ]);
  });
});
