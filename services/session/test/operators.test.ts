import { randomUUID } from 'node:crypto';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import {
  DeclineReason,
  type FindKeyRequestsRequestSchema,
  type KeyRequest,
  KeyRequestKind,
  KeyRequestState,
  NotificationKind,
} from '@keytrail/contracts';
import { keyRequestEnded, notificationRequested } from '@keytrail/events';
import { purgeAuditLog } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createPerson, type MadeSession, makeSession, reseal, type TestDevice } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000 }, { sweep: false });
}, 60_000);
afterAll(() => world?.stop());

/** Alice's first device made the session for itself and Bob; her second one, which came later, has asked for its key. */
async function waitingRequest() {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const [initiator, bobs] = [alice.addDevice(), bob.addDevice()];
  const made = makeSession({ initiator, covered: [initiator, bobs] });
  await world.store(made);
  world.peers.commit(made, [alice, bob]);
  const late = alice.addDevice();
  return { alice, initiator, bobs, late, made, keyRequest: await request(late, made) };
}

async function request(late: TestDevice, { session }: MadeSession): Promise<KeyRequest> {
  const { conversationId, sessionId } = session;
  const asked = { requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING };
  const { keyRequest } = await world.as(late).requestKey(asked);
  if (!keyRequest) throw new Error('no key request');
  return keyRequest;
}

function fulfil(holder: TestDevice, made: MadeSession, to: TestDevice, keyRequestId: string, attempt: number) {
  const envelope = reseal(made, holder, to, attempt);
  return world.as(holder).fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope });
}

/** The notification that a device was offered the request. */
const offeredTo = (device: TestDevice, keyRequestId: string) =>
  world.event(
    notificationRequested.session,
    ({ notification, devices }) =>
      notification?.kind === NotificationKind.KEY_OFFERED &&
      notification.keyRequestId === keyRequestId &&
      devices.some(({ deviceId, userId }) => deviceId === device.deviceId && userId === device.userId),
  );

async function auditOf(keyRequestId: string) {
  const { rows } = await world.sql.query(
    'SELECT operator, action, user_id, note, outcome, trace_id FROM audit_log WHERE key_request_id = $1 ORDER BY number',
    [keyRequestId],
  );
  return rows;
}

const audited = (action: string, outcome = 'done') => ({
  operator: 'ops',
  action,
  outcome,
  trace_id: expect.stringMatching(/^[0-9a-f]{32}$/),
});

describe('an operator', () => {
  it('finds key requests by what they are about, page by page, with their offers and traces', async () => {
    const { alice, initiator, late, made, keyRequest } = await waitingRequest();
    const { keyRequestId } = keyRequest;
    const second = makeSession({ initiator, covered: [initiator] });
    await world.store(second);
    world.peers.commit(second, [alice]);
    world.peers.attach(initiator);
    const offered = await request(late, second);

    const find = async (filter: MessageInitShape<typeof FindKeyRequestsRequestSchema>) =>
      (await world.operator.findKeyRequests({ userId: alice.userId, ...filter })).keyRequests;
    const ids = async (filter: MessageInitShape<typeof FindKeyRequestsRequestSchema>) =>
      (await find(filter)).map((view) => view.keyRequest?.keyRequestId);
    expect(await ids({})).toEqual([keyRequestId, offered.keyRequestId]);
    // Nobody's in particular: the open ones of all, which other tests have too.
    const all = await world.operator.findKeyRequests({ page: { size: 200 } });
    expect(all.keyRequests.map((view) => view.keyRequest?.keyRequestId)).toEqual(
      expect.arrayContaining([keyRequestId, offered.keyRequestId]),
    );
    for (const { keyRequest: open } of all.keyRequests)
      expect([KeyRequestState.WAITING_FOR_HOLDER, KeyRequestState.OFFERED]).toContain(open?.state);
    const ofAll = await world.operator.findKeyRequests({ states: [KeyRequestState.OFFERED], page: { size: 200 } });
    expect(ofAll.keyRequests.map((view) => view.keyRequest?.keyRequestId)).toContain(offered.keyRequestId);
    expect(ofAll.keyRequests.map((view) => view.keyRequest?.keyRequestId)).not.toContain(keyRequestId);
    expect(await ids({ conversationId: made.session.conversationId })).toEqual([keyRequestId]);
    expect(await ids({ states: [KeyRequestState.OFFERED] })).toEqual([offered.keyRequestId]);
    expect(await ids({ deviceId: 'another' })).toEqual([]);
    expect(await ids({ olderThanMs: 3_600_000n })).toEqual([]);
    await world.sql.query(
      `UPDATE key_requests SET requested_at = date_trunc('milliseconds', now() - interval '1 day') WHERE key_request_id = $1`,
      [keyRequestId],
    );
    expect(await ids({ olderThanMs: 3_600_000n })).toEqual([keyRequestId]);
    const first = await world.operator.findKeyRequests({ userId: alice.userId, page: { size: 1 } });
    expect(first.keyRequests).toHaveLength(1);
    expect(await ids({ page: { size: 1, token: first.nextToken } })).toEqual([offered.keyRequestId]);

    const [view] = await find({ keyRequestId: offered.keyRequestId });
    expect(view).toMatchObject({ acceptedAttempt: 0, traceId: expect.stringMatching(/^[0-9a-f]{32}$/) });
    expect(view?.writerBuild).not.toBe('');
    expect(view?.offers).toMatchObject([{ attempt: 1, declinedBecause: '', holder: { deviceId: initiator.deviceId } }]);
    expect(view).not.toHaveProperty('endedAt', expect.anything());
    await fulfil(initiator, second, late, offered.keyRequestId, 1);
    expect(await find({ keyRequestId: offered.keyRequestId })).toMatchObject([
      { acceptedAttempt: 1, keyRequest: { state: KeyRequestState.FULFILLED }, endedAt: {} },
    ]);
    expect(await ids({})).toEqual([keyRequestId]);
  });

  it('nudges a request that nobody told that its holder is online', async () => {
    const { initiator, late, made, keyRequest } = await waitingRequest();
    const { keyRequestId } = keyRequest;
    world.peers.attach(initiator);
    const nudged = await world.operator.nudgeKeyRequest({ keyRequestId });
    expect(nudged.keyRequest?.keyRequest).toMatchObject({ keyRequestId, state: KeyRequestState.WAITING_FOR_HOLDER });
    await offeredTo(initiator, keyRequestId);
    await fulfil(initiator, made, late, keyRequestId, 1);
    const ended = await refusalOf(world.operator.nudgeKeyRequest({ keyRequestId }));
    expect(ended).toMatchObject({ reason: 'KEY_REQUEST_ENDED', metadata: { state: 'FULFILLED' } });
    expect(await auditOf(keyRequestId)).toMatchObject([
      { ...audited('nudge_key_request'), user_id: late.userId },
      audited('nudge_key_request', 'KEY_REQUEST_ENDED'),
    ]);
  });

  it('cancels a request, once and again, and its requester is told', async () => {
    const { late, keyRequest } = await waitingRequest();
    const { keyRequestId } = keyRequest;
    for (const note of ['the user asked for it', 'again'])
      expect((await world.operator.endKeyRequest({ keyRequestId, note })).keyRequest?.keyRequest).toMatchObject({
        state: KeyRequestState.CANCELLED,
        endedBecause: 'cancelled_by_operator',
      });
    const ended = await world.event(keyRequestEnded, (event) => event.keyRequestId === keyRequestId);
    expect(ended).toMatchObject({ state: 'CANCELLED', because: 'cancelled_by_operator' });
    await world.event(
      notificationRequested.session,
      ({ notification, devices }) =>
        notification?.kind === NotificationKind.KEY_REQUEST_ENDED &&
        notification.keyRequestId === keyRequestId &&
        devices.some(({ deviceId }) => deviceId === late.deviceId),
    );
    expect(await auditOf(keyRequestId)).toMatchObject([
      { ...audited('end_key_request'), note: 'the user asked for it' },
      { ...audited('end_key_request'), note: 'again' },
    ]);
  });

  it('replays a request that everybody declined: all are asked again', async () => {
    const { initiator, bobs, late, made, keyRequest } = await waitingRequest();
    const { keyRequestId } = keyRequest;
    world.peers.attach(initiator, bobs);
    await world.operator.nudgeKeyRequest({ keyRequestId });
    const reason = DeclineReason.NOT_TRUSTED;
    for (const holder of [initiator, bobs]) {
      await offeredTo(holder, keyRequestId);
      await world.as(holder).declineOffer({ keyRequestId, attempt: 1, reason });
    }
    await world.event(keyRequestEnded, (event) => event.keyRequestId === keyRequestId);

    const replayed = await world.operator.replayKeyRequest({ keyRequestId });
    const again = replayed.keyRequest?.keyRequest?.keyRequestId ?? '';
    expect(again).not.toBe(keyRequestId);
    await Promise.all([offeredTo(initiator, again), offeredTo(bobs, again)]);
    const repeated = await world.operator.replayKeyRequest({ keyRequestId });
    expect(repeated.keyRequest?.keyRequest?.keyRequestId).toBe(again);
    await fulfil(bobs, made, late, again, 2);
    expect((await world.as(late).getInitialSession(made.session)).envelope).toMatchObject({ attempt: 2 });
    for (const id of [again, keyRequestId])
      expect((await refusalOf(world.operator.replayKeyRequest({ keyRequestId: id }))).reason).toBe(
        'KEY_REQUEST_NOT_NEEDED',
      );
  });

  it('gives nobody a right: a requester who is not entitled any more, or revoked, is not asked for again', async () => {
    const [left, revoked] = [await waitingRequest(), await waitingRequest()];
    for (const { keyRequest } of [left, revoked])
      await world.operator.endKeyRequest({ keyRequestId: keyRequest.keyRequestId });
    world.peers.conversations.get(left.made.session.conversationId)?.members.set(left.alice.userId, []);
    world.peers.revoked.set(`${revoked.late.userId} ${revoked.late.deviceId}`, new Date());
    for (const { keyRequest } of [left, revoked]) {
      const { keyRequestId } = keyRequest;
      expect((await refusalOf(world.operator.replayKeyRequest({ keyRequestId }))).reason).toBe('NOT_ENTITLED');
      expect(await auditOf(keyRequestId)).toMatchObject([
        audited('end_key_request'),
        audited('replay_key_request', 'NOT_ENTITLED'),
      ]);
    }
  });

  it('who looks is audited, whatever comes of it', async () => {
    const userId = `nobody-${randomUUID()}`;
    await world.operator.findKeyRequests({ userId });
    const badToken = world.operator.findKeyRequests({ userId, page: { token: 'nonsense' } });
    expect((await refusalOf(badToken)).reason).toBe('INVALID_FIELD');
    const { rows } = await world.sql.query('SELECT * FROM audit_log WHERE user_id = $1 ORDER BY number', [userId]);
    expect(rows).toMatchObject([audited('find_key_requests'), audited('find_key_requests', 'INVALID_FIELD')]);
    const keyRequestId = randomUUID();
    for (const calls of [
      () => world.operator.nudgeKeyRequest({ keyRequestId }),
      () => world.operator.endKeyRequest({ keyRequestId }),
      () => world.operator.replayKeyRequest({ keyRequestId }),
    ])
      expect((await refusalOf(calls())).reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
    expect(await auditOf(keyRequestId)).toHaveLength(3);
  });

  it('is told that there is no such key request, in words for operators', async () => {
    const keyRequestId = randomUUID();
    for (const call of [world.operator.nudgeKeyRequest, world.operator.replayKeyRequest, world.operator.endKeyRequest])
      expect(await refusalOf(call({ keyRequestId }))).toMatchObject({
        reason: 'NOT_FOUND_OR_NOT_PERMITTED',
        message: 'there is no such key request',
        metadata: { field: 'key_request_id' },
      });
  });

  it('gets typed refusals for bad input', async () => {
    const keyRequestId = randomUUID();
    const bad: [field: string, call: () => Promise<unknown>][] = [
      ['states[0]', () => world.operator.findKeyRequests({ states: [77 as KeyRequestState] })],
      ['conversation_id', () => world.operator.findKeyRequests({ conversationId: 'c' })],
      ['user_id', () => world.operator.findKeyRequests({ userId: 'a b' })],
      ['device_id', () => world.operator.findKeyRequests({ deviceId: 'phone' })],
      ['key_request_id', () => world.operator.findKeyRequests({ keyRequestId: 'k' })],
      ['older_than_ms', () => world.operator.findKeyRequests({ olderThanMs: 2n ** 63n })],
      ['key_request_id', () => world.operator.nudgeKeyRequest({})],
      ['note', () => world.operator.endKeyRequest({ keyRequestId, note: 'a\0b' })],
      ['note', () => world.operator.endKeyRequest({ keyRequestId, note: 'n'.repeat(501) })],
      ['key_request_id', () => world.operator.replayKeyRequest({ keyRequestId: 'k' })],
    ];
    for (const [field, call] of bad) {
      const refusal = await refusalOf(call());
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
      expect([refusal.metadata.field, ...refusal.fields.map((problem) => problem.field)]).toContain(field);
    }
  });
});

describe('nudges, ends and replays at the same time as a fulfilment', () => {
  it('leave one end, one open request at most, and no envelope for a request that ended without a key', async () => {
    for (let round = 0; round < 12; round++) {
      const { initiator, bobs, late, made, keyRequest } = await waitingRequest();
      const { keyRequestId } = keyRequest;
      world.peers.attach(initiator, bobs);
      await world.operator.nudgeKeyRequest({ keyRequestId });
      await offeredTo(initiator, keyRequestId);
      const tries = await Promise.allSettled([
        fulfil(initiator, made, late, keyRequestId, 1),
        world.operator.endKeyRequest({ keyRequestId }),
        world.operator.nudgeKeyRequest({ keyRequestId }),
        world.operator.replayKeyRequest({ keyRequestId }),
        world.operator.replayKeyRequest({ keyRequestId }),
      ]);
      const allowed = ['KEY_REQUEST_ENDED', 'KEY_REQUEST_NOT_NEEDED'];
      for (const one of tries)
        if (one.status === 'rejected') expect(allowed).toContain((await refusalOf(Promise.reject(one.reason))).reason);
      const { rows } = await world.sql.query(
        `SELECT k.state, k.ended_because, k.accepted_attempt, (SELECT count(*)::int FROM envelopes e
           WHERE e.key_request_id = k.key_request_id) AS envelopes
         FROM key_requests k WHERE k.session_id = $1 AND k.user_id = $2 ORDER BY k.requested_at`,
        [made.session.sessionId, late.userId],
      );
      expect(rows.filter(({ state }) => ['WAITING_FOR_HOLDER', 'OFFERED'].includes(state)).length).toBeLessThan(2);
      for (const row of rows) expect(row.envelopes).toBe(row.state === 'FULFILLED' ? 1 : 0);
      const [first] = rows;
      const fulfilled = tries[0]?.status === 'fulfilled';
      expect([first.state, first.ended_because]).toEqual(
        fulfilled ? ['FULFILLED', 'key_delivered'] : ['CANCELLED', 'cancelled_by_operator'],
      );
    }
  }, 30_000);
});

describe('the audit log', () => {
  it('takes no change, and loses only what is older than the retention', async () => {
    const { keyRequest } = await waitingRequest();
    const { keyRequestId } = keyRequest;
    await world.operator.nudgeKeyRequest({ keyRequestId });
    for (const change of [
      `UPDATE audit_log SET note = 'another'`,
      'DELETE FROM audit_log',
      'TRUNCATE audit_log',
      `UPDATE audit_log SET happened_at = now() - interval '1 year'`,
    ])
      await expect(world.sql.query(change)).rejects.toMatchObject({ constraint: 'audit_log_only_grows' });
    const old = randomUUID();
    await world.sql.query(
      `INSERT INTO audit_log (operator, action, key_request_id, note, outcome, trace_id, happened_at)
       VALUES ('ops', 'nudge_key_request', $1, '', 'done', '', now() - interval '31 days')`,
      [old],
    );
    expect(await purgeAuditLog(world.service.db, 60 * 86_400_000)).toBe(0);
    expect(await purgeAuditLog(world.service.db, 1)).toBe(1);
    expect(await auditOf(old)).toEqual([]);
    expect(await auditOf(keyRequestId)).toHaveLength(1);
  });
});
