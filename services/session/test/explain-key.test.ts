import { randomUUID } from 'node:crypto';
import { Code } from '@connectrpc/connect';
import { DeclineReason, type ExplainKeyResponse, KeyRejectionReason, KeyRequestKind } from '@keytrail/contracts';
import { pseudonym } from '@keytrail/telemetry';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createPerson, type MadeSession, makeSession, reseal, type TestDevice } from './people.ts';
import { startSilentPeer } from './silent-peer.ts';
import { keyOf } from './stand-ins.ts';
import { offersTo, refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000 }, { sweep: false });
}, 60_000);
afterAll(() => world?.stop());
const ownGateway = { gatewayId: 'gateway', alive: true, isOwn: true, leaseLeftMs: 9_000n };
afterEach(() => {
  world.peers.gateways.splice(0, Number.POSITIVE_INFINITY, ownGateway);
});

/** Alice's phone made a session for itself and for Bob's; both are members. */
async function session(changes: { withheld?: boolean } = {}) {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const [initiator, reader] = [alice.addDevice(), bob.addDevice()];
  const made = changes.withheld
    ? makeSession({ initiator, covered: [initiator], withheld: [reader] })
    : makeSession({ initiator, covered: [initiator, reader] });
  await world.store(made);
  world.peers.commit(made, [alice, bob]);
  return { alice, bob, initiator, reader, made };
}

function explain({ session: { conversationId, sessionId } }: MadeSession, { userId, deviceId }: TestDevice) {
  return world.operator.explainKey({ conversationId, sessionId, userId, deviceId });
}

async function requestKey({ session: { conversationId, sessionId } }: MadeSession, device: TestDevice) {
  const asked = { requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING };
  const { keyRequest } = await world.as(device).requestKey(asked);
  return keyRequest?.keyRequestId ?? '';
}

const codes = ({ findings }: ExplainKeyResponse) => findings.map(({ code }) => code);
const explaining = ({ findings }: ExplainKeyResponse) =>
  findings.filter(({ explainsMiss }) => explainsMiss).map(({ code }) => code);
const events = ({ timeline }: ExplainKeyResponse) => timeline.map(({ event }) => event);

describe('a key that is there', () => {
  it('is READABLE, and says whether it was opened', async () => {
    const { made, reader, initiator } = await session();
    const first = await explain(made, reader);
    expect(codes(first)).toEqual(['READABLE']);
    expect(first).toMatchObject({
      readable: true,
      notAsked: [],
      device: { userId: reader.userId, deviceId: reader.deviceId },
      userPseudonym: pseudonym(reader.userId),
      session: { envelopesPresent: 2, envelopesExpected: 2, ephemeralKeyPresent: true, damages: [] },
      findings: [
        {
          page: 'docs/findings/readable.md',
          evidence: { sealed_by: `${initiator.userId}/${initiator.deviceId}`, opened_at: 'not told' },
        },
      ],
    });
    await world.as(reader).ackKey({ conversationId: made.session.conversationId, sessionId: made.session.sessionId });
    const opened = await explain(made, reader);
    expect(opened.findings[0]?.summary).toContain('has opened it');
    expect(events(opened)).toEqual(expect.arrayContaining(['device_registered', 'session_stored', 'acknowledged']));
  });
});

describe('a key that has to come yet', () => {
  it('is told with what became of the request, from nobody asked to a key in hand', async () => {
    const { made, bob, initiator } = await session();
    const late = bob.addDevice();
    const before = await explain(made, late);
    expect(codes(before)).toEqual(['DEVICE_ADDED_AFTER_SESSION', 'NEVER_REQUESTED']);
    expect(explaining(before)).toEqual(['DEVICE_ADDED_AFTER_SESSION']);
    expect(before.findings[0]?.page).toBe('docs/reasons/device-added-after-session.md');

    const keyRequestId = await requestKey(made, late);
    const waiting = await explain(made, late);
    expect(codes(waiting)).toEqual(['DEVICE_ADDED_AFTER_SESSION', 'NO_HOLDER_ONLINE']);
    expect(events(waiting)).toContain('holder_wanted');
    world.peers.attach(initiator);
    expect(codes(await explain(made, late))).toEqual(['DEVICE_ADDED_AFTER_SESSION', 'REQUEST_WAITING']);
    await world.attached(initiator);
    while ((await offersTo(world.as(initiator))).length === 0) await world.operator.nudgeKeyRequest({ keyRequestId });
    expect(codes(await explain(made, late))).toEqual(['DEVICE_ADDED_AFTER_SESSION', 'REQUEST_OFFERED']);

    const attempt = 1;
    const envelope = reseal(made, initiator, late, attempt);
    await world.as(initiator).fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope });
    const after = await explain(made, late);
    expect(codes(after)).toEqual(['READABLE']);
    const told = after.timeline.filter(({ details }) => details.key_request_id === keyRequestId);
    expect(told.map(({ event }) => event)).toEqual(['key_requested', 'offered', 'fulfilled']);
    const [requested] = told;
    expect(requested).toMatchObject({ traceId: expect.stringMatching(/^[0-9a-f]{32}$/), source: 'session' });
    expect(requested?.writerBuild).not.toBe('');
    const times = after.timeline.map(({ happenedAt }) => Number(happenedAt?.seconds) * 1e9 + (happenedAt?.nanos ?? 0));
    expect(times).toEqual([...times].sort((a, b) => a - b));
    world.peers.online.delete(keyOf(initiator));
  });

  it('that holders decline, or that the device rejects, is told with the reasons', async () => {
    const { made, bob, initiator } = await session();
    const late = bob.addDevice();
    world.peers.attach(initiator);
    const keyRequestId = await requestKey(made, late);
    const reason = DeclineReason.NOT_TRUSTED;
    await world.as(initiator).declineOffer({ keyRequestId, attempt: 1, reason });
    const declined = await explain(made, late);
    expect(codes(declined).slice(0, 2)).toEqual(['DEVICE_ADDED_AFTER_SESSION', 'HOLDERS_DECLINE']);
    expect(declined.findings[1]?.evidence).toMatchObject({ reasons: 'NOT_TRUSTED' });
    expect(events(declined)).toContain('declined');
    world.peers.online.delete(keyOf(initiator));

    const { conversationId, sessionId } = made.session;
    const reader = bob.devices[0] as TestDevice;
    await world.as(reader).rejectKey({
      requestId: randomUUID(),
      conversationId,
      sessionId,
      attempt: 0,
      reason: KeyRejectionReason.CANNOT_OPEN,
    });
    const rejected = await explain(made, reader);
    expect(rejected.readable).toBe(true);
    expect(codes(rejected)[0]).toBe('KEY_REJECTED');
    expect(rejected.findings[0]).toMatchObject({ explainsMiss: true, evidence: { rejected_because: 'CANNOT_OPEN' } });
    expect(events(rejected)).toContain('rejected');
  });

  it('that waits because presence lost who is attached, is told as that', async () => {
    const { made, bob } = await session();
    const late = bob.addDevice();
    world.peers.gateways.splice(0, 1, { ...ownGateway, streams: 2n, streamsWithoutEntry: 2n });
    expect(explaining(await explain(made, late))).toEqual(['DEVICE_ADDED_AFTER_SESSION']);
    await requestKey(made, late);
    const lost = await explain(made, late);
    expect(codes(lost).slice(0, 2)).toEqual(['PRESENCE_LOST', 'DEVICE_ADDED_AFTER_SESSION']);
    expect(lost.findings[0]?.evidence).toMatchObject({ streams: '2', streams_without_entry: '2' });
  });
});

describe('envelopes that are gone', () => {
  it('explain the miss of the device whose they were, and not that of one that came later or was left out', async () => {
    const [alice, bob, carol] = [createPerson('alice'), createPerson('bob'), createPerson('carol')];
    const [initiator, reader, leftOut] = [alice.addDevice(), bob.addDevice(), carol.addDevice()];
    const made = makeSession({ initiator, covered: [initiator, reader], withheld: [leftOut] });
    await world.store(made);
    world.peers.commit(made, [alice, bob, carol]);
    const late = bob.addDevice();
    const { sessionId } = made.session;
    await world.sql.query('ALTER TABLE envelopes DISABLE TRIGGER USER');
    await world.sql.query('DELETE FROM envelopes WHERE session_id = $1 AND user_id = $2', [sessionId, bob.userId]);
    await world.sql.query('ALTER TABLE envelopes ENABLE TRIGGER USER');

    const own = await explain(made, reader);
    expect(explaining(own)).toEqual(['ENVELOPES_FEWER_THAN_EXPECTED', 'ENVELOPE_MISSING']);
    expect(own.findings[0]?.evidence).toMatchObject({ envelope_of_this_device: 'missing' });
    for (const [device, cause] of [
      [late, 'DEVICE_ADDED_AFTER_SESSION'],
      [leftOut, 'KEY_WITHHELD'],
    ] as const) {
      const other = await explain(made, device);
      expect(explaining(other)).toEqual([cause]);
      const fewer = other.findings.find(({ code }) => code === 'ENVELOPES_FEWER_THAN_EXPECTED');
      expect(fewer).toMatchObject({ explainsMiss: false, evidence: { envelope_of_this_device: 'not expected' } });
    }
  });
});

describe('a reader without a right', () => {
  it('is told apart: never a member, no such conversation, revoked, withheld', async () => {
    const { made, bob } = await session();
    const mallory = createPerson('mallory');
    const stranger = mallory.addDevice();
    const ofStranger = await explain(made, stranger);
    expect(codes(ofStranger)).toEqual(['NEVER_A_MEMBER', 'NOT_FOUND_OR_NOT_PERMITTED']);
    expect(explaining(ofStranger)).toEqual(['NEVER_A_MEMBER']);
    expect(ofStranger.findings[0]?.evidence).toMatchObject({ device_registered: 'false' });
    world.peers.people.set(mallory.userId, mallory);
    expect((await explain(made, stranger)).findings[0]?.evidence).toMatchObject({ device_registered: 'true' });
    const nowhere = { ...made, session: { ...made.session, conversationId: randomUUID() } };
    expect(explaining(await explain(nowhere, stranger))).toEqual(['CONVERSATION_UNKNOWN']);
    const revoked = bob.addDevice();
    world.peers.revoked.set(keyOf(revoked), new Date());
    const ofRevoked = await explain(made, revoked);
    expect(codes(ofRevoked)).toEqual(['DEVICE_REVOKED']);
    expect(ofRevoked.timeline.find(({ event }) => event === 'device_revoked')).toMatchObject({
      source: 'identity-keys',
      traceId: 'c'.repeat(32),
      writerBuild: 'identity-keys-build',
    });
    const left = await session();
    const facts = world.peers.commit(left.made, [left.bob], [{ fromEpoch: 1n, toEpoch: 1n }]);
    facts.rotationDue = 'MEMBER_REMOVED';
    const { timeline } = await explain(left.made, left.reader);
    expect(timeline.find(({ event }) => event === 'rotation_due')).toMatchObject({
      source: 'conversation',
      traceId: 'a'.repeat(32),
      writerBuild: 'conversation-build',
      details: { because: 'MEMBER_REMOVED' },
    });
    expect(timeline.find(({ event }) => event === 'member_left')).toMatchObject({
      source: 'conversation',
      traceId: 'b'.repeat(32),
      writerBuild: 'conversation-build',
    });
    const withheld = await session({ withheld: true });
    expect(codes(await explain(withheld.made, withheld.reader))[0]).toBe('KEY_WITHHELD');
  });
});

describe('a session that is none', () => {
  it('is told apart: unknown, a candidate, one that never won, one that is gone', async () => {
    const { made, reader } = await session();
    const { conversationId } = made.session;
    const facts = world.peers.conversations.get(conversationId);
    const codesOf = async (sessionId: string) =>
      codes(
        await world.operator.explainKey({
          conversationId,
          sessionId,
          userId: reader.userId,
          deviceId: reader.deviceId,
        }),
      );
    expect(await codesOf('nothing')).toEqual(['SESSION_UNKNOWN']);
    facts?.standings.set('waiting', 'candidate');
    facts?.standings.set('loser', 'aborted');
    expect(await codesOf('waiting')).toEqual(['CANDIDATE_UNDECIDED', 'SESSION_UNKNOWN']);
    expect(await codesOf('loser')).toEqual(['CANDIDATE_NEVER_WON', 'SESSION_UNKNOWN']);
    facts?.sessions.set('gone', 2n);
    expect(await codesOf('gone')).toEqual(['CONVERSATION_WITHOUT_SESSION', 'SESSION_UNKNOWN']);
  });
});

describe('the device that is asked about', () => {
  it('is found by the pseudonyms that traces show, and the session by being the current one', async () => {
    const { made, reader, bob } = await session();
    const late = bob.addDevice();
    const { conversationId, sessionId } = made.session;
    const stranger = createPerson('mallory');
    world.peers.people.set(stranger.userId, stranger);
    for (const device of [reader, late, stranger.addDevice()]) {
      const named = { userPseudonym: pseudonym(device.userId), devicePseudonym: pseudonym(device.deviceId) };
      expect(await world.operator.explainKey({ conversationId, ...named })).toMatchObject({
        device: { userId: device.userId, deviceId: device.deviceId },
        currentSessionId: sessionId,
      });
    }
    const nobody = { userPseudonym: '0'.repeat(16), devicePseudonym: '0'.repeat(16) };
    expect(await refusalOf(world.operator.explainKey({ conversationId, ...nobody }))).toMatchObject({
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
      metadata: { user_pseudonym: nobody.userPseudonym },
    });
    const erased = { userPseudonym: pseudonym('erased-of-late'), devicePseudonym: nobody.devicePseudonym };
    world.peers.erased.set('erased-of-late', new Date(0));
    expect(await refusalOf(world.operator.explainKey({ conversationId, ...erased }))).toMatchObject({
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
      metadata: { user_pseudonym: erased.userPseudonym, erased_at: new Date(0).toISOString() },
    });
    expect(await refusalOf(world.operator.explainKey({ conversationId, userId: reader.userId }))).toMatchObject({
      code: Code.InvalidArgument,
      metadata: { field: 'device_id' },
    });
  });

  it('is audited by its ids before anything is shown, also where the answer is a refusal', async () => {
    const { made, reader } = await session();
    const { conversationId, sessionId } = made.session;
    await world.operator.explainKey({
      conversationId,
      userPseudonym: pseudonym(reader.userId),
      deviceId: reader.deviceId,
    });
    await refusalOf(world.operator.explainKey({ conversationId, userPseudonym: '0'.repeat(16), deviceId: 'phone' }));
    const { rows } = await world.sql.query(
      'SELECT operator, action, user_id, device_id, note, outcome FROM audit_log WHERE conversation_id = $1 ORDER BY number',
      [conversationId],
    );
    expect(rows).toEqual([
      {
        operator: 'ops',
        action: 'explain_key',
        user_id: reader.userId,
        device_id: reader.deviceId,
        note: `session ${sessionId}`,
        outcome: 'done',
      },
      {
        operator: 'ops',
        action: 'explain_key',
        user_id: null,
        device_id: 'phone',
        note: '',
        outcome: 'NOT_FOUND_OR_NOT_PERMITTED',
      },
    ]);
  });
});

describe('while a peer is away', { timeout: 30_000 }, () => {
  /** Who is online decides how the key may come, not why it is not there. */
  const decided = (peer: string) => (peer === 'presence' ? ['DEVICE_ADDED_AFTER_SESSION'] : []);

  it.each([
    ['conversation', { peerConversation: '127.0.0.1:1' }],
    ['identity-keys', { peerIdentityKeys: '127.0.0.1:1' }],
    ['presence', { peerPresence: '127.0.0.1:1' }],
  ] as const)('%s is named as not asked, and nothing is said that it would have had to say', async (peer, changes) => {
    const { made, bob } = await session();
    const late = bob.addDevice();
    const instance = await world.another(changes, { consumers: false, sweep: false });
    try {
      const { conversationId, sessionId } = made.session;
      const { userId, deviceId } = late;
      const explained = await instance.operator.explainKey({ conversationId, sessionId, userId, deviceId });
      expect(explained).toMatchObject({ readable: false, notAsked: [peer], session: { envelopesPresent: 2 } });
      expect(codes(explained)).toEqual([...decided(peer), 'EXPLANATION_INCOMPLETE', 'NEVER_REQUESTED']);
      const incomplete = explained.findings.find(({ code }) => code === 'EXPLANATION_INCOMPLETE');
      expect(incomplete?.evidence).toEqual({ peer });
      expect(explaining(explained)).toEqual(decided(peer));
    } finally {
      await instance.stop();
    }
  });

  it.each([
    ['conversation', 'peerConversation'],
    ['identity-keys', 'peerIdentityKeys'],
    ['presence', 'peerPresence'],
  ] as const)('%s that takes calls and stays silent is named within the time of the call', async (peer, setting) => {
    const { made, bob } = await session();
    const late = bob.addDevice();
    const { conversationId, sessionId } = made.session;
    const { userId, deviceId } = late;
    const silent = await startSilentPeer();
    // As long as the call: it is its deadline that has to leave time to tell.
    const settings = { [setting]: silent.target, peerTimeoutMs: 4_000 };
    const instance = await world.another(settings, { consumers: false, sweep: false });
    const limit = { timeoutMs: 4_000 };
    try {
      const named = await instance.operator.explainKey({ conversationId, sessionId, userId, deviceId }, limit);
      expect(named).toMatchObject({ readable: false, notAsked: [peer] });
      expect(codes(named)).toEqual([...decided(peer), 'EXPLANATION_INCOMPLETE', 'NEVER_REQUESTED']);
      const current = instance.operator.explainKey({ conversationId, userId, deviceId }, limit);
      if (peer === 'conversation')
        expect(await refusalOf(current)).toMatchObject({ reason: 'EXPLANATION_INCOMPLETE', metadata: { peer } });
      else expect((await current).notAsked).toEqual([peer]);
    } finally {
      await instance.stop();
      await silent.stop();
    }
  });

  it('the current session cannot be found by conversation, and who asks is told to ask again', async () => {
    const { made, reader } = await session();
    const instance = await world.another({ peerConversation: '127.0.0.1:1' }, { consumers: false, sweep: false });
    try {
      const asked = { conversationId: made.session.conversationId, userId: reader.userId, deviceId: reader.deviceId };
      expect(await refusalOf(instance.operator.explainKey(asked))).toMatchObject({
        reason: 'EXPLANATION_INCOMPLETE',
        metadata: { peer: 'conversation' },
        retryAfterMs: 1000,
      });
    } finally {
      await instance.stop();
    }
  });
});
