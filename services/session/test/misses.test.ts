import { randomUUID } from 'node:crypto';
import { Code } from '@connectrpc/connect';
import { HistoryPolicy, KeyRequestKind, MissCause, missCauseName, Recovery, Remedy } from '@keytrail/contracts';
import { currentTraceId } from '@keytrail/telemetry';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createPerson, makeSession, type TestDevice } from './people.ts';
import { keyOf } from './stand-ins.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld();
}, 60_000);
afterAll(() => world.stop());

async function committedSession() {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const [initiator, other] = [alice.addDevice(), bob.addDevice()];
  const made = makeSession({ initiator, covered: [initiator, other] });
  await world.store(made);
  const facts = world.peers.commit(made, [alice, bob]);
  const { conversationId, sessionId } = made.session;
  return { alice, bob, initiator, other, made, facts, conversationId, sessionId };
}

async function missOf(device: { userId: string; deviceId: string }, conversationId: string, sessionId: string) {
  const refusal = await refusalOf(world.as(device).getInitialSession({ conversationId, sessionId }));
  expect(refusal.code).toBe(Code.NotFound);
  const { miss } = refusal;
  if (!miss) throw new Error(`no miss with ${refusal.reason}`);
  expect(refusal.reason).toBe(missCauseName(miss.cause));
  expect(miss.traceId).toMatch(/^[0-9a-f]{32}$/);
  expect(miss.helpUrl).toContain(refusal.reason.toLowerCase().replaceAll('_', '-'));
  return miss;
}

/** The name of each statement, and each connection that is asked for, with the trace it happens in; until mocks are restored. */
function watchPool(pool: World['service']['db']['pool']): { readonly what: string; readonly traceId: string }[] {
  const ran: { what: string; traceId: string }[] = [];
  const watch = (method: 'query' | 'connect', what: (first: unknown) => string) => {
    const really = pool[method].bind(pool) as (...args: unknown[]) => unknown;
    vi.spyOn(pool, method).mockImplementation(((...args: unknown[]) => {
      ran.push({ what: what(args[0]), traceId: currentTraceId() });
      return really(...args);
    }) as never);
  };
  watch('query', (text) => (text as { name?: string }).name ?? '');
  watch('connect', () => 'connect');
  return ran;
}

describe('a hit', () => {
  it('is one statement and asks nobody', async () => {
    const { other, conversationId, sessionId } = await committedSession();
    const client = world.as(other);
    await client.getInitialSession({ conversationId, sessionId });
    const before = { ...world.peers.asked };
    // Rounds of the service share the pool, in traces of their own: what counts is what ran in the trace of this call.
    const ran = watchPool(world.service.db.pool);
    await client.getInitialSession({ conversationId, sessionId });
    const call = ran.find(({ what }) => what === 'read_initial_session')?.traceId;
    expect(call).toMatch(/^[0-9a-f]{32}$/);
    const own = ran.flatMap(({ what, traceId }) => (traceId === call ? [what] : []));
    expect(own.filter((what) => what !== 'connect')).toEqual(['read_initial_session']);
    expect(own.filter((what) => what === 'connect').length).toBeLessThanOrEqual(1);
    expect(world.peers.asked).toEqual(before);
    vi.restoreAllMocks();
  });

  it('is the same on both wires, by plain GET on the web', async () => {
    const { other, conversationId, sessionId } = await committedSession();
    const [grpc, web] = await Promise.all(
      (['grpc', 'web'] as const).map((wire) => world.as(other, wire).getInitialSession({ conversationId, sessionId })),
    );
    expect(web).toEqual(grpc);
  });
});

describe('a miss names its cause', () => {
  it('SESSION_UNKNOWN: the conversation has no such session', async () => {
    const { other, conversationId, sessionId } = await committedSession();
    expect(await missOf(other, conversationId, 'another')).toMatchObject({
      cause: MissCause.SESSION_UNKNOWN,
      remedy: Remedy.REFRESH_CONVERSATION,
      evidence: { current_epoch: '1', current_session_id: sessionId, conversation_id: conversationId },
    });
  });

  it('SESSION_UNKNOWN: a candidate that has not won its epoch is no session yet for those whom it does not cover', async () => {
    const { alice, initiator, bob, conversationId } = await committedSession();
    const candidate = makeSession({ initiator, covered: [initiator], conversationId, epoch: 2n });
    await world.store(candidate);
    expect(alice.devices).toContain(initiator);
    const miss = await missOf(bob.devices[0] as TestDevice, conversationId, candidate.session.sessionId);
    expect(miss).toMatchObject({ cause: MissCause.SESSION_UNKNOWN, evidence: { session_committed: 'false' } });
  });

  it('SESSION_UNKNOWN: committed, but not stored here', async () => {
    const { other, conversationId, facts } = await committedSession();
    facts.sessions.set('lost', 2n);
    expect(await missOf(other, conversationId, 'lost')).toMatchObject({
      cause: MissCause.SESSION_UNKNOWN,
      remedy: Remedy.REQUEST_ROTATION,
      evidence: { session_committed: 'true' },
    });
  });

  it('NOT_A_MEMBER_AT_EPOCH: the user had left before', async () => {
    const { initiator, bob, conversationId, facts } = await committedSession();
    const rotated = makeSession({ initiator, covered: [initiator], conversationId, epoch: 2n });
    await world.store(rotated);
    facts.sessions.set(rotated.session.sessionId, 2n);
    facts.members.set(bob.userId, [{ fromEpoch: 1n, toEpoch: 1n }]);
    expect(await missOf(bob.devices[0] as TestDevice, conversationId, rotated.session.sessionId)).toMatchObject({
      cause: MissCause.NOT_A_MEMBER_AT_EPOCH,
      recovery: Recovery.NOT_PERMITTED,
      evidence: { epoch: '2', member_from_epoch: '1', member_to_epoch: '1' },
    });
  });

  it('HISTORY_NOT_SHARED: the user joined later', async () => {
    const { conversationId, sessionId, made } = await committedSession();
    const carol = createPerson('carol');
    const device = carol.addDevice();
    world.peers.commit(made, [carol], [{ fromEpoch: 2n, toEpoch: 0n }]);
    expect(await missOf(device, conversationId, sessionId)).toMatchObject({
      cause: MissCause.HISTORY_NOT_SHARED,
      recovery: Recovery.NOT_PERMITTED,
      remedy: Remedy.BE_ADDED,
      evidence: { epoch: '1', member_from_epoch: '2', history_policy: 'OWN_MEMBERSHIP' },
    });
  });

  it('DEVICE_ADDED_AFTER_SESSION for a user who joined later where history is shared', async () => {
    const { conversationId, sessionId, made, facts } = await committedSession();
    const carol = createPerson('carol');
    const device = carol.addDevice();
    world.peers.commit(made, [carol], [{ fromEpoch: 2n, toEpoch: 0n }]);
    facts.historyPolicy = HistoryPolicy.SHARED;
    expect(await missOf(device, conversationId, sessionId)).toMatchObject({
      cause: MissCause.DEVICE_ADDED_AFTER_SESSION,
      recovery: Recovery.REQUESTABLE,
      evidence: { session_device_list_version: '0' },
    });
  });

  it('DEVICE_UNKNOWN: the device is not registered', async () => {
    const { bob, conversationId, sessionId } = await committedSession();
    const device = { userId: bob.userId, deviceId: 'unheard-of' };
    expect(await missOf(device, conversationId, sessionId)).toMatchObject({
      cause: MissCause.DEVICE_UNKNOWN,
      remedy: Remedy.REGISTER_DEVICE,
      evidence: { device_id: 'unheard-of' },
    });
  });

  it('DEVICE_REVOKED: by the local list, although there is an envelope', async () => {
    const { other, conversationId, sessionId } = await committedSession();
    await world.sql.query('INSERT INTO revoked_devices VALUES ($1, $2, now())', [other.userId, other.deviceId]);
    expect(await missOf(other, conversationId, sessionId)).toMatchObject({
      cause: MissCause.DEVICE_REVOKED,
      recovery: Recovery.NOT_PERMITTED,
      remedy: Remedy.NONE,
    });
  });

  it('DEVICE_REVOKED: by identity-keys, before the local list knows', async () => {
    const { bob, conversationId, sessionId } = await committedSession();
    const later = bob.addDevice();
    world.peers.revoked.set(keyOf(later), new Date());
    expect(await missOf(later, conversationId, sessionId)).toMatchObject({ cause: MissCause.DEVICE_REVOKED });
  });

  it('DEVICE_ADDED_AFTER_SESSION: the device came later, and can request the key', async () => {
    const { bob, initiator, conversationId, sessionId } = await committedSession();
    const later = bob.addDevice();
    world.peers.attach(initiator);
    const miss = await missOf(later, conversationId, sessionId);
    expect(miss).toMatchObject({
      cause: MissCause.DEVICE_ADDED_AFTER_SESSION,
      recovery: Recovery.REQUESTABLE,
      remedy: Remedy.REQUEST_KEY,
      keyRequestId: '',
      evidence: {
        device_added_in_version: '2',
        session_device_list_version: '1',
        holders: '2',
        holders_online: '1',
      },
    });
    const { rows } = await world.sql.query('SELECT created_trace_id FROM sessions WHERE session_id = $1', [sessionId]);
    expect(miss.causedByTraceId).toBe(rows[0]?.created_trace_id);
    expect(miss.causedByTraceId).toMatch(/^[0-9a-f]{32}$/);
  });

  it('KEY_WITHHELD: the initiator withheld it', async () => {
    const [alice, bob] = [createPerson('alice'), createPerson('bob')];
    const [initiator, other] = [alice.addDevice(), bob.addDevice()];
    const made = makeSession({ initiator, covered: [initiator], withheld: [other] });
    await world.store(made);
    world.peers.commit(made, [alice, bob]);
    expect(await missOf(other, made.session.conversationId, made.session.sessionId)).toMatchObject({
      cause: MissCause.KEY_WITHHELD,
      recovery: Recovery.REQUESTABLE,
      evidence: { withheld_reason: 'UNCERTIFIED', initiator_user_id: alice.userId },
    });
  });

  it('ENVELOPE_MISSING: it was there and is not any more', async () => {
    const { other, conversationId, sessionId } = await committedSession();
    await world.sql.query('ALTER TABLE envelopes DISABLE TRIGGER session_keeps_its_envelopes');
    await world.sql.query('DELETE FROM envelopes WHERE conversation_id = $1 AND user_id = $2', [
      conversationId,
      other.userId,
    ]);
    await world.sql.query('ALTER TABLE envelopes ENABLE TRIGGER session_keeps_its_envelopes');
    expect(await missOf(other, conversationId, sessionId)).toMatchObject({
      cause: MissCause.ENVELOPE_MISSING,
      evidence: { envelopes_present: '1', envelopes_expected: '2', writer_build: expect.stringMatching(/^\d+\.\d+/) },
    });
  });

  it.each([
    ['INITIATOR_EPHEMERAL_MISSING', 'NULL', `decode(repeat('01', 32), 'hex')`],
    ['INITIATOR_IDENTITY_MISSING', `decode(repeat('01', 32), 'hex')`, 'NULL'],
  ] as const)('%s: an imported row lacks it', async (cause, ephemeralKey, identityKey) => {
    const { alice, bob, initiator, other, made } = await committedSession();
    const [conversationId, sessionId] = [randomUUID(), 'imported'];
    await world.sql.query(
      `INSERT INTO sessions (conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, initiator_ephemeral_key,
         initiator_identity_key, envelopes_expected, withholdings_expected, imported_from, writer_build, created_traceparent)
       VALUES ($1, $2, 'IMPORTED', 1, $3, $4, ${ephemeralKey}, ${identityKey}, 0, 0, 'an older server', 'import', '')`,
      [conversationId, sessionId, initiator.userId, initiator.deviceId],
    );
    world.peers.commit({ ...made, session: { ...made.session, conversationId, sessionId } }, [alice, bob]);
    const expected = {
      cause: MissCause[cause],
      recovery: Recovery.REQUESTABLE,
      evidence: { writer_build: 'import' },
    };
    // The initiator could help, whether or not an envelope was imported: without the key it cannot be opened.
    expect(await missOf(other, conversationId, sessionId)).toMatchObject(expected);
    await world.sql.query(
      `DO $$
       DECLARE one envelopes;
       BEGIN
         SELECT * INTO one FROM envelopes WHERE conversation_id = '${made.session.conversationId}' AND user_id = '${other.userId}';
         one.conversation_id := '${conversationId}';
         one.session_id := '${sessionId}';
         INSERT INTO envelopes SELECT one.*;
       END $$`,
    );
    expect(await missOf(other, conversationId, sessionId)).toMatchObject(expected);
  });

  it('with NO_HOLDER_EXISTS when nobody is left who could help', async () => {
    const alice = createPerson('alice');
    const first = alice.addDevice();
    const made = makeSession({ initiator: first, covered: [first] });
    await world.store(made);
    world.peers.commit(made, [alice]);
    const second = alice.addDevice();
    world.peers.revoked.set(keyOf(first), new Date());
    expect(await missOf(second, made.session.conversationId, made.session.sessionId)).toMatchObject({
      cause: MissCause.DEVICE_ADDED_AFTER_SESSION,
      recovery: Recovery.NO_HOLDER_EXISTS,
      remedy: Remedy.REQUEST_ROTATION,
    });
  });
});

describe('RequestKey', () => {
  it('is refused with the miss to those who may not have the key', async () => {
    const { bob, conversationId, sessionId, made } = await committedSession();
    const revoked = bob.addDevice();
    world.peers.revoked.set(keyOf(revoked), new Date());
    const carol = createPerson('carol');
    const joinedLater = carol.addDevice();
    world.peers.commit(made, [carol], [{ fromEpoch: 2n, toEpoch: 0n }]);
    const refusals = await Promise.all(
      [
        { device: { userId: bob.userId, deviceId: 'unheard-of' }, sessionId },
        { device: revoked, sessionId },
        { device: joinedLater, sessionId },
        { device: revoked, sessionId: 'no-such-session' },
      ].map(async ({ device, sessionId }) => {
        const request = { requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING };
        const { code, miss } = await refusalOf(world.as(device).requestKey(request));
        expect(code).toBe(Code.NotFound);
        return miss?.cause;
      }),
    );
    expect(refusals).toEqual([
      MissCause.DEVICE_UNKNOWN,
      MissCause.DEVICE_REVOKED,
      MissCause.HISTORY_NOT_SHARED,
      MissCause.SESSION_UNKNOWN,
    ]);
    const { rows } = await world.sql.query('SELECT FROM key_requests WHERE conversation_id = $1', [conversationId]);
    expect(rows).toEqual([]);
  });
});

describe('a stranger', () => {
  it.each(['grpc', 'web'] as const)('gets one uniform answer on the %s wire', async (wire) => {
    const { conversationId, sessionId } = await committedSession();
    const stranger = createPerson('mallory').addDevice();
    const client = world.as(stranger, wire);
    const answers = await Promise.all(
      [
        { conversationId, sessionId },
        { conversationId, sessionId: 'no-such-session' },
        { conversationId: randomUUID(), sessionId },
      ].map(async (asked) => {
        const { traceId, ...rest } = await refusalOf(client.getInitialSession(asked));
        expect(traceId).toMatch(/^[0-9a-f]{32}$/);
        return rest;
      }),
    );
    expect(answers[0]).toMatchObject({
      code: Code.NotFound,
      reason: 'NOT_FOUND_OR_NOT_PERMITTED',
      metadata: {},
      miss: undefined,
    });
    expect(new Set(answers.map((answer) => JSON.stringify(answer))).size).toBe(1);
  });

  it('gets it from RequestKey too', async () => {
    const { conversationId, sessionId } = await committedSession();
    const stranger = createPerson('mallory').addDevice();
    const refusal = await refusalOf(
      world.as(stranger).requestKey({ requestId: randomUUID(), conversationId, sessionId, kind: 1 }),
    );
    expect(refusal).toMatchObject({ reason: 'NOT_FOUND_OR_NOT_PERMITTED', miss: undefined });
  });
});

describe('a miss that cannot be explained', { timeout: 30_000 }, () => {
  it.each([
    ['conversation', { peerConversation: '127.0.0.1:1' }],
    ['identity-keys', { peerIdentityKeys: '127.0.0.1:1' }],
    ['presence', { peerPresence: '127.0.0.1:1' }],
  ] as const)('is EXPLANATION_INCOMPLETE while %s is away', async (peer, changes) => {
    const { bob, conversationId, sessionId } = await committedSession();
    const later = bob.addDevice();
    const instance = await world.another(changes, { consumers: false, sweep: false });
    try {
      const refusal = await refusalOf(instance.as(later).getInitialSession({ conversationId, sessionId }));
      expect(refusal).toMatchObject({
        code: Code.Unavailable,
        reason: 'EXPLANATION_INCOMPLETE',
        metadata: { peer },
        retryAfterMs: 1000,
      });
    } finally {
      await instance.stop();
    }
  });

  it('is explained nevertheless when an earlier fact decides', async () => {
    const { conversationId, sessionId } = await committedSession();
    const stranger = createPerson('mallory').addDevice();
    const instance = await world.another(
      { peerIdentityKeys: '127.0.0.1:1', peerPresence: '127.0.0.1:1' },
      { consumers: false, sweep: false },
    );
    try {
      const refusal = await refusalOf(instance.as(stranger).getInitialSession({ conversationId, sessionId }));
      expect(refusal.reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
    } finally {
      await instance.stop();
    }
  });

  it('does not keep a hit from being read', async () => {
    const { other, conversationId, sessionId } = await committedSession();
    const away = '127.0.0.1:1';
    const instance = await world.another(
      { peerConversation: away, peerIdentityKeys: away, peerPresence: away },
      { consumers: false, sweep: false },
    );
    try {
      const read = await instance.as(other).getInitialSession({ conversationId, sessionId });
      expect(read.sessionId).toBe(sessionId);
    } finally {
      await instance.stop();
    }
  });
});
