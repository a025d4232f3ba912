import { randomUUID } from 'node:crypto';
import {
  DeclineReason,
  KeyRequestKind,
  KeyRequestRole,
  KeyRequestState,
  NotificationKind,
  Recovery,
} from '@keytrail/contracts';
import { holderWanted, keyDelivered, keyRequestEnded, notificationRequested } from '@keytrail/events';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createPerson, type MadeSession, makeSession, reseal, type TestDevice } from './people.ts';
import { offersTo, refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  // Long times: what happens here is driven by events, not by the sweep.
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000 }, { sweep: false });
}, 60_000);
afterAll(() => world.stop());

/** Alice's first device made the session for itself and Bob; her second one came later. */
async function lateDevice(holders = 1, on: World = world) {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const others = Array.from({ length: holders }, () => bob.addDevice());
  const initiator = alice.addDevice();
  const made = makeSession({ initiator, covered: [initiator, ...others] });
  await on.store(made);
  on.peers.commit(made, [alice, bob]);
  const late = alice.addDevice();
  const { conversationId, sessionId } = made.session;
  return { alice, bob, initiator, others, late, made, conversationId, sessionId };
}

function requestOf(made: MadeSession, kind: KeyRequestKind = KeyRequestKind.MISSING, rejectedAttempt = 0) {
  const { conversationId, sessionId } = made.session;
  return { requestId: randomUUID(), conversationId, sessionId, kind, rejectedAttempt };
}

async function offered(device: TestDevice, keyRequestId: string, on: World = world) {
  await on.event(
    notificationRequested.session,
    ({ notification, devices }) =>
      notification?.kind === NotificationKind.KEY_OFFERED &&
      notification.keyRequestId === keyRequestId &&
      devices.some(({ userId, deviceId }) => userId === device.userId && deviceId === device.deviceId),
  );
  const offer = (await offersTo(on.as(device))).find((request) => request.keyRequestId === keyRequestId);
  if (!offer) throw new Error('the offer is not listed');
  return offer;
}

function fulfil(
  holder: TestDevice,
  made: MadeSession,
  to: TestDevice,
  keyRequestId: string,
  attempt: number,
  on = world,
) {
  return on
    .as(holder)
    .fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope: reseal(made, holder, to, attempt) });
}

describe('a key request', () => {
  it('is offered to a holder that is online, fulfilled, read and acknowledged', async () => {
    const { initiator, late, made, conversationId, sessionId } = await lateDevice();
    world.peers.attach(initiator);
    const { keyRequest, recovery } = await world.as(late).requestKey(requestOf(made));
    expect(recovery).toBe(Recovery.PENDING_OFFERED);
    expect(keyRequest).toMatchObject({ state: KeyRequestState.OFFERED, attempt: 1, holders: 2, epoch: 1n });
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const offer = await offered(initiator, keyRequestId);
    expect(offer).toMatchObject({ attempt: 1, requester: { userId: late.userId, deviceId: late.deviceId } });

    const pending = await refusalOf(world.as(late).getInitialSession({ conversationId, sessionId }));
    expect(pending.miss).toMatchObject({ recovery: Recovery.PENDING_OFFERED, keyRequestId });

    const fulfilled = await fulfil(initiator, made, late, keyRequestId, 1);
    expect(fulfilled.keyRequest).toMatchObject({ state: KeyRequestState.FULFILLED, endedBecause: 'key_delivered' });
    await world.event(keyDelivered, (event) => event.keyRequestId === keyRequestId && event.attempt === 1);
    await world.event(
      notificationRequested.session,
      ({ notification }) =>
        notification?.kind === NotificationKind.KEY_DELIVERED &&
        notification.keyRequestId === keyRequestId &&
        /^00-[0-9a-f]{32}-/.test(notification.traceparent),
    );
    const read = await world.as(late).getInitialSession({ conversationId, sessionId });
    expect(read.envelope).toMatchObject({ attempt: 1, sealer: { deviceId: initiator.deviceId } });
    await world.as(late).ackKey({ conversationId, sessionId, attempt: 1 });
    const { rows } = await world.sql.query(
      'SELECT attempt FROM envelopes WHERE conversation_id = $1 AND opened_at IS NOT NULL',
      [conversationId],
    );
    expect(rows).toEqual([{ attempt: 1 }]);
  });

  it('that is fulfilled names the build that did it, for good', async () => {
    const { initiator, late, made, conversationId } = await lateDevice();
    world.peers.attach(initiator);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    await offered(initiator, keyRequestId);
    await fulfil(initiator, made, late, keyRequestId, 1);
    const { rows } = await world.sql.query(
      `SELECT e.key_request_id AS "keyRequestId", e.writer_build = s.writer_build AS "byThisBuild"
         FROM envelopes e JOIN sessions s USING (conversation_id, session_id) WHERE conversation_id = $1 AND e.writer_build IS NOT NULL`,
      [conversationId],
    );
    expect(rows).toEqual([{ keyRequestId, byThisBuild: true }]);
    await expect(
      world.sql.query("UPDATE envelopes SET writer_build = 'another' WHERE key_request_id = $1", [keyRequestId]),
    ).rejects.toMatchObject({ constraint: 'sessions_immutable' });
  });

  it('carries the trace of its requester to the holder, also when it had to wait', async () => {
    const { initiator, late, made } = await lateDevice();
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const { rows } = await world.sql.query('SELECT traceparent FROM key_requests WHERE key_request_id = $1', [
      keyRequestId,
    ]);
    const traceId = rows[0].traceparent.split('-')[1];
    expect(traceId).toMatch(/^[0-9a-f]{32}$/);
    world.peers.attach(initiator);
    await world.attached(initiator);
    const { notification } = await world.event(
      notificationRequested.session,
      (event) => event.notification?.keyRequestId === keyRequestId,
    );
    expect(notification?.traceparent.split('-')[1]).toBe(traceId);
  });

  it('waits when nobody is online, says so, wants a holder, and goes on when one attaches', async () => {
    const { initiator, late, made } = await lateDevice();
    const { keyRequest, recovery } = await world.as(late).requestKey(requestOf(made));
    expect(recovery).toBe(Recovery.PENDING_NO_HOLDER_ONLINE);
    expect(keyRequest).toMatchObject({ state: KeyRequestState.WAITING_FOR_HOLDER, attempt: 0, holders: 2 });
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const wanted = await world.event(holderWanted, (event) => event.keyRequestId === keyRequestId);
    expect(wanted.holders[0]).toMatchObject({ userId: initiator.userId, deviceId: initiator.deviceId });

    world.peers.attach(initiator);
    await world.attached(initiator);
    const offer = await offered(initiator, keyRequestId);
    await fulfil(initiator, made, late, keyRequestId, offer.attempt);
    expect(await world.as(late).getInitialSession(made.session)).toMatchObject({ envelope: { attempt: 1 } });
  });

  it('stays one open request under twenty calls at the same time', async () => {
    const { late, made } = await lateDevice();
    const client = world.as(late);
    const answers = await Promise.all(Array.from({ length: 20 }, () => client.requestKey(requestOf(made))));
    expect(new Set(answers.map(({ keyRequest }) => keyRequest?.keyRequestId)).size).toBe(1);
    const { rows } = await world.sql.query('SELECT count(*)::integer AS n FROM key_requests WHERE session_id = $1', [
      made.session.sessionId,
    ]);
    expect(rows).toEqual([{ n: 1 }]);
  });

  it('gives the same answer to the same request id, and refuses the id for another request', async () => {
    const { initiator, late, made } = await lateDevice();
    world.peers.attach(initiator);
    const request = requestOf(made);
    const first = await world.as(late).requestKey(request);
    await fulfil(initiator, made, late, first.keyRequest?.keyRequestId ?? '', 1);
    expect(await world.as(late).requestKey(request)).toEqual(first);
    const other = { ...request, kind: KeyRequestKind.REWRAP };
    expect((await refusalOf(world.as(late).requestKey(other))).reason).toBe('REQUEST_ID_REUSED');
  });

  it('gives the first answer again when its requester has lost its rights since, or a peer is away', async () => {
    const { alice, initiator, late, made, conversationId } = await lateDevice();
    world.peers.attach(initiator);
    const request = requestOf(made);
    const first = await world.as(late).requestKey(request);
    const alone = await world.another({ peerConversation: '127.0.0.1:1' }, { consumers: false, sweep: false });
    try {
      expect(await alone.as(late).requestKey(request)).toEqual(first);
      expect((await refusalOf(alone.as(late).requestKey(requestOf(made)))).reason).toBe('PEER_UNAVAILABLE');
    } finally {
      await alone.stop();
    }
    world.peers.conversations.get(conversationId)?.members.set(alice.userId, []);
    expect(await world.as(late).requestKey(request)).toEqual(first);
    expect((await refusalOf(world.as(late).requestKey(requestOf(made)))).reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
    const other = { ...request, kind: KeyRequestKind.REWRAP };
    expect((await refusalOf(world.as(late).requestKey(other))).reason).toBe('REQUEST_ID_REUSED');
  });

  it('is not needed for a key that is there, but can be asked for again when it cannot be opened', async () => {
    const { initiator, others, made } = await lateDevice();
    const [bobs] = others as [TestDevice];
    const refusal = await refusalOf(world.as(bobs).requestKey(requestOf(made)));
    expect(refusal).toMatchObject({ reason: 'KEY_REQUEST_NOT_NEEDED', metadata: { kind: 'MISSING' } });
    world.peers.attach(initiator, bobs);
    const { keyRequest } = await world.as(bobs).requestKey(requestOf(made, KeyRequestKind.REWRAP));
    await fulfil(initiator, made, bobs, keyRequest?.keyRequestId ?? '', 1);
    expect((await world.as(bobs).getInitialSession(made.session)).envelope?.attempt).toBe(1);
  });

  it('does not ask the sealer of a rejected envelope again, and counts attempts on', async () => {
    const { initiator, others, late, made } = await lateDevice();
    world.peers.attach(initiator);
    const first = await world.as(late).requestKey(requestOf(made));
    await fulfil(initiator, made, late, first.keyRequest?.keyRequestId ?? '', 1);
    const [bobs] = others as [TestDevice];
    world.peers.attach(bobs);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made, KeyRequestKind.REJECTED, 1));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    expect(keyRequest).toMatchObject({ state: KeyRequestState.OFFERED, attempt: 2 });
    const { rows } = await world.sql.query('SELECT user_id FROM offers WHERE key_request_id = $1', [keyRequestId]);
    expect(rows).toEqual([{ user_id: bobs.userId }]);
    await fulfil(bobs, made, late, keyRequestId, 2);
    expect((await world.as(late).getInitialSession(made.session)).envelope).toMatchObject({
      attempt: 2,
      sealer: { userId: bobs.userId },
    });
    const unknown = await refusalOf(world.as(late).requestKey(requestOf(made, KeyRequestKind.REJECTED, 7)));
    expect(unknown).toMatchObject({ reason: 'INVALID_FIELD', metadata: { field: 'rejected_attempt' } });
  });

  it('ends at once when no holder exists', async () => {
    const alice = createPerson('alice');
    const initiator = alice.addDevice();
    const made = makeSession({ initiator, covered: [initiator] });
    await world.store(made);
    world.peers.commit(made, [alice]);
    const late = alice.addDevice();
    await world.sql.query('INSERT INTO revoked_devices VALUES ($1, $2, now())', [initiator.userId, initiator.deviceId]);
    world.peers.revoked.set(`${initiator.userId} ${initiator.deviceId}`, new Date());
    const { keyRequest, recovery } = await world.as(late).requestKey(requestOf(made));
    expect(recovery).toBe(Recovery.NO_HOLDER_EXISTS);
    expect(keyRequest).toMatchObject({ state: KeyRequestState.UNFULFILLABLE, endedBecause: 'no_holder_exists' });
    const ended = await world.event(keyRequestEnded, ({ keyRequestId }) => keyRequestId === keyRequest?.keyRequestId);
    expect(ended).toMatchObject({ state: 'UNFULFILLABLE', because: 'no_holder_exists' });
  });

  it('goes to the next holder when one declines, and ends when all have', async () => {
    const { initiator, others, late, made } = await lateDevice(2);
    const [second, third] = others as [TestDevice, TestDevice];
    world.peers.attach(initiator, second, third);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    await offered(initiator, keyRequestId);
    const { rows } = await world.sql.query(`SELECT device_id FROM offers WHERE key_request_id = $1 AND user_id = $2`, [
      keyRequestId,
      second.userId,
    ]);
    const [firstOfBob, lastOfBob] = rows[0].device_id === second.deviceId ? [second, third] : [third, second];

    const reason = DeclineReason.NOT_TRUSTED;
    await world.as(initiator).declineOffer({ keyRequestId, attempt: 1, reason });
    const next = await offered(lastOfBob, keyRequestId);
    expect(next.attempt).toBe(2);
    // A decline that comes again, with another reason, changes nothing: neither what was said nor when the request is looked at.
    const declined = async () =>
      (
        await world.sql.query(
          `SELECT k.version, k.next_attempt_at, o.decline_reason FROM key_requests k JOIN offers o USING (key_request_id)
           WHERE key_request_id = $1 AND o.declined_at IS NOT NULL`,
          [keyRequestId],
        )
      ).rows;
    const once = await declined();
    await world.as(initiator).declineOffer({ keyRequestId, attempt: 1, reason: DeclineReason.KEY_NOT_HELD });
    expect(await declined()).toEqual(once);
    expect(once).toMatchObject([{ decline_reason: 'NOT_TRUSTED' }]);
    expect(await offersTo(world.as(initiator))).toEqual([]);
    expect((await refusalOf(fulfil(initiator, made, late, keyRequestId, 1))).reason).toBe('NOT_OFFERED');

    await world.as(firstOfBob).declineOffer({ keyRequestId, attempt: 1, reason });
    await world.as(lastOfBob).declineOffer({ keyRequestId, attempt: 2, reason });
    const ended = await world.event(keyRequestEnded, (event) => event.keyRequestId === keyRequestId);
    expect(ended.because).toBe('all_holders_declined');
  });

  it('can be cancelled by its requester alone, once and again', async () => {
    const { late, initiator, made } = await lateDevice();
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    expect((await refusalOf(world.as(initiator).cancelKeyRequest({ keyRequestId }))).reason).toBe(
      'NOT_FOUND_OR_NOT_PERMITTED',
    );
    for (let time = 0; time < 2; time++)
      expect((await world.as(late).cancelKeyRequest({ keyRequestId })).keyRequest).toMatchObject({
        state: KeyRequestState.CANCELLED,
        endedBecause: 'cancelled_by_requester',
      });
    const told = await world.event(
      notificationRequested.session,
      ({ notification }) =>
        notification?.keyRequestId === keyRequestId && notification.kind === NotificationKind.KEY_REQUEST_ENDED,
    );
    expect(told.devices).toMatchObject([{ userId: late.userId, deviceId: late.deviceId }]);
    const own = { role: KeyRequestRole.REQUESTER };
    expect((await world.as(late).listKeyRequests(own)).keyRequests).toEqual([]);
    expect((await world.as(late).listKeyRequests({ ...own, includeEnded: true })).keyRequests).toHaveLength(1);
  });

  it('is stored and dispatched later when presence is away', async () => {
    const { initiator, late, made } = await lateDevice();
    world.peers.attach(initiator);
    const instance = await world.another({ peerPresence: '127.0.0.1:1' }, { consumers: false, sweep: false });
    try {
      const { keyRequest, recovery } = await instance.as(late).requestKey(requestOf(made));
      expect(recovery).toBe(Recovery.PENDING_NO_HOLDER_ONLINE);
      await offered(initiator, keyRequest?.keyRequestId ?? '');
    } finally {
      await instance.stop();
    }
  });

  it('is listed page by page, oldest first', async () => {
    const { alice, initiator, bob, late } = await lateDevice();
    const ids: string[] = [];
    for (let i = 0; i < 3; i++) {
      const made = makeSession({ initiator, covered: [initiator], pinned: [{ userId: alice.userId, version: 1n }] });
      await world.store(made);
      world.peers.commit(made, [alice, bob]);
      ids.push((await world.as(late).requestKey(requestOf(made))).keyRequest?.keyRequestId ?? '');
    }
    const seen: string[] = [];
    for (let token = '', more = true; more; more = token !== '') {
      const page = await world.as(late).listKeyRequests({ role: KeyRequestRole.REQUESTER, page: { size: 2, token } });
      seen.push(...page.keyRequests.map(({ keyRequestId }) => keyRequestId));
      token = page.nextToken;
    }
    expect(seen).toEqual(ids);
  });
});

describe('an envelope', () => {
  it('is accepted once of many at the same time', async () => {
    const { initiator, others, late, made } = await lateDevice();
    const [bobs] = others as [TestDevice];
    world.peers.attach(initiator, bobs);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const tries = await Promise.allSettled(
      [initiator, bobs, initiator, bobs].map((holder) => fulfil(holder, made, late, keyRequestId, 1)),
    );
    expect(tries.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    for (const one of tries)
      if (one.status === 'rejected')
        expect((await refusalOf(Promise.reject(one.reason))).reason).toBe('ATTEMPT_ALREADY_FULFILLED');
    const { rows } = await world.sql.query('SELECT count(*)::integer AS n FROM envelopes WHERE key_request_id = $1', [
      keyRequestId,
    ]);
    expect(rows).toEqual([{ n: 1 }]);
  });

  it('gets the same answer to the same request id', async () => {
    const { initiator, late, made } = await lateDevice();
    world.peers.attach(initiator);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const request = {
      requestId: randomUUID(),
      keyRequestId: keyRequest?.keyRequestId ?? '',
      attempt: 1,
      envelope: reseal(made, initiator, late, 1),
    };
    const first = await world.as(initiator).fulfillKeyRequest(request);
    expect(await world.as(initiator).fulfillKeyRequest(request)).toEqual(first);
  });

  it('gets the first answer again when its holder has lost its rights since, or a peer is away', async () => {
    const { alice, initiator, late, made, conversationId } = await lateDevice();
    world.peers.attach(initiator);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const envelope = reseal(made, initiator, late, 1);
    const request = { requestId: randomUUID(), keyRequestId, attempt: 1, envelope };
    const first = await world.as(initiator).fulfillKeyRequest(request);
    const anew = () => ({ ...request, requestId: randomUUID() });
    const alone = await world.another({ peerIdentityKeys: '127.0.0.1:1' }, { consumers: false, sweep: false });
    try {
      expect(await alone.as(initiator).fulfillKeyRequest(request)).toEqual(first);
      expect((await refusalOf(alone.as(initiator).fulfillKeyRequest(anew()))).reason).toBe('PEER_UNAVAILABLE');
    } finally {
      await alone.stop();
    }
    world.peers.conversations.get(conversationId)?.members.set(alice.userId, []);
    expect(await world.as(initiator).fulfillKeyRequest(request)).toEqual(first);
    expect((await refusalOf(world.as(initiator).fulfillKeyRequest(anew()))).reason).toBe('NOT_ENTITLED');
    await world.as(initiator).declineOffer({ keyRequestId, attempt: 1, reason: DeclineReason.NOT_TRUSTED });
    expect(await world.as(initiator).fulfillKeyRequest(request)).toEqual(first);
    expect((await refusalOf(world.as(initiator).fulfillKeyRequest(anew()))).reason).toBe('NOT_OFFERED');
  });

  it('is accepted late, while the request is open: a lapsed offer only means that others are asked too', async () => {
    const { initiator, late, made } = await lateDevice();
    world.peers.attach(initiator);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    await world.sql.query(`UPDATE offers SET lapses_at = now() - interval '1 second' WHERE key_request_id = $1`, [
      keyRequestId,
    ]);
    expect(await offersTo(world.as(initiator))).toEqual([]);
    expect((await fulfil(initiator, made, late, keyRequestId, 1)).keyRequest?.state).toBe(KeyRequestState.FULFILLED);
  });

  it('is refused from a device that was not offered the request, holder or not', async () => {
    const { initiator, others, late, made } = await lateDevice();
    world.peers.attach(initiator);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const mallory = createPerson('mallory');
    const stranger = mallory.addDevice();
    world.peers.people.set(mallory.userId, mallory);
    for (const device of [stranger, others[0] as TestDevice])
      expect(await refusalOf(fulfil(device, made, late, keyRequestId, 1))).toMatchObject({ reason: 'NOT_OFFERED' });
    expect((await refusalOf(fulfil(initiator, made, late, keyRequestId, 2))).reason).toBe('NOT_OFFERED');
    expect((await refusalOf(fulfil(initiator, made, late, randomUUID(), 1))).reason).toBe('NOT_OFFERED');
  });

  it('must name requester, holder and attempt, and be signed by the registered key', async () => {
    const { initiator, others, late, made } = await lateDevice();
    world.peers.attach(initiator);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const [bobs] = others as [TestDevice];
    const send = (envelope: ReturnType<typeof reseal>) =>
      refusalOf(world.as(initiator).fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt: 1, envelope }));
    const field = (name: string) => ({ reason: 'INVALID_FIELD', metadata: { field: name } });

    expect(await send(reseal(made, initiator, bobs, 1))).toMatchObject(field('envelope.recipient'));
    expect(await send(reseal(made, bobs, late, 1))).toMatchObject(field('envelope.sealer'));
    expect(await send(reseal(made, initiator, late, 2))).toMatchObject(field('envelope.attempt'));
    const forger = { ...initiator, signingKey: bobs.signingKey };
    expect(await send(reseal(made, forger, late, 1))).toMatchObject(field('envelope.sealer_signing_key'));
    const tampered = reseal(made, initiator, late, 1);
    tampered.ciphertext = new Uint8Array(48);
    expect(await send(tampered)).toMatchObject({
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'envelope.signature' },
    });
    const otherCertificate = reseal(made, { ...initiator, certificate: bobs.certificate }, late, 1);
    expect(await send(otherCertificate)).toMatchObject({ reason: 'CERTIFICATE_INVALID' });
    const elsewhere = makeSession({ initiator, covered: [initiator] });
    expect(await send(reseal(elsewhere, initiator, late, 1))).toMatchObject({ reason: 'SIGNATURE_INVALID' });
  });

  it('is refused once requester or holder is not entitled any more, or revoked', async () => {
    const { alice, bob, late, others, made, conversationId } = await lateDevice();
    const [bobs] = others as [TestDevice];
    world.peers.attach(bobs);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const members = world.peers.conversations.get(conversationId)?.members;
    const refusal = () => refusalOf(fulfil(bobs, made, late, keyRequestId, 1));
    for (const { userId } of [alice, bob]) {
      members?.set(userId, []);
      expect(await refusal()).toMatchObject({ reason: 'NOT_ENTITLED', metadata: { cause: 'NOT_A_MEMBER_AT_EPOCH' } });
      members?.set(userId, [{ fromEpoch: 5n, toEpoch: 0n }]);
      expect(await refusal()).toMatchObject({ reason: 'NOT_ENTITLED', metadata: { cause: 'HISTORY_NOT_SHARED' } });
      members?.set(userId, [{ fromEpoch: 1n, toEpoch: 0n }]);
    }
    world.peers.revoked.set(`${late.userId} ${late.deviceId}`, new Date());
    expect(await refusal()).toMatchObject({
      reason: 'NOT_ENTITLED',
      metadata: { cause: 'DEVICE_REVOKED' },
    });
    // A holder without a right of its own is told that, and nothing of the requester.
    members?.set(bob.userId, []);
    expect(await refusal()).toMatchObject({
      reason: 'NOT_ENTITLED',
      metadata: { cause: 'NOT_A_MEMBER_AT_EPOCH' },
    });
  });
});

describe('an envelope whose rights end while it is on its way', () => {
  const erase = (userId: string) =>
    world.sql.query('INSERT INTO erasures (erasure_id, user_id, requested_at) VALUES ($1, $2, now())', [
      randomUUID(),
      userId,
    ]);
  const revoke = ({ userId, deviceId }: TestDevice) =>
    world.sql.query('INSERT INTO revoked_devices VALUES ($1, $2, now())', [userId, deviceId]);
  const revokedDevice = { reason: 'NOT_ENTITLED', metadata: { cause: 'DEVICE_REVOKED' } };

  it.each([
    { what: 'its holder is erased', end: ({ holder }: Ways) => erase(holder.userId), refused: revokedDevice },
    { what: 'its requester is erased', end: ({ late }: Ways) => erase(late.userId), refused: revokedDevice },
    { what: 'its holder is revoked', end: ({ holder }: Ways) => revoke(holder), refused: revokedDevice },
    { what: 'its requester is revoked', end: ({ late }: Ways) => revoke(late), refused: revokedDevice },
    {
      what: 'the offer is declined',
      end: ({ keyRequestId }: Ways) =>
        world.sql.query(
          `UPDATE offers SET declined_at = now(), decline_reason = 'KEY_NOT_HELD' WHERE key_request_id = $1`,
          [keyRequestId],
        ),
      refused: { reason: 'NOT_OFFERED' },
    },
  ])('is not accepted: $what', async ({ end, refused }) => {
    const { others, late, made } = await lateDevice();
    const [holder] = others as [TestDevice];
    world.peers.attach(holder);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    const holding = await world.sql.connect();
    try {
      // The envelope has passed every check, and waits for the request.
      await holding.query('BEGIN');
      await holding.query('SELECT FROM key_requests WHERE key_request_id = $1 FOR UPDATE', [keyRequestId]);
      const refusal = refusalOf(fulfil(holder, made, late, keyRequestId, 1));
      await vi.waitFor(async () => {
        const { rows } = await world.sql.query(
          `SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
             AND query LIKE '%FROM key_requests WHERE key_request_id = ANY ($1::uuid[]) ORDER BY key_request_id FOR UPDATE'`,
        );
        expect(rows).toHaveLength(1);
      }, 10_000);
      await end({ holder, late, keyRequestId });
      await holding.query('COMMIT');
      expect(await refusal).toMatchObject(refused);
    } finally {
      await holding.query('ROLLBACK');
      holding.release();
    }
    const { rows } = await world.sql.query(
      `SELECT state, (SELECT count(*)::int FROM envelopes WHERE key_request_id = $1) AS envelopes
       FROM key_requests WHERE key_request_id = $1`,
      [keyRequestId],
    );
    expect(rows).toEqual([{ state: 'OFFERED', envelopes: 0 }]);
  });
});

interface Ways {
  readonly holder: TestDevice;
  readonly late: TestDevice;
  readonly keyRequestId: string;
}

describe('straight SQL', () => {
  const copy = (table: string, changes: Record<string, string>) => `DO $$
    DECLARE one ${table};
    BEGIN
      SELECT * INTO one FROM ${table} WHERE key_request_id = '{id}';
      ${Object.entries(changes)
        .map(([column, value]) => `one.${column} := ${value};`)
        .join(' ')}
      INSERT INTO ${table} SELECT one.*;
    END $$`;

  it('cannot open a second request of a device for a session', async () => {
    const { late, made } = await lateDevice();
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const second = copy('key_requests', { key_request_id: 'gen_random_uuid()' });
    await expect(world.sql.query(second.replace('{id}', keyRequest?.keyRequestId ?? ''))).rejects.toMatchObject({
      constraint: 'key_requests_one_open',
    });
  });

  it('cannot write a second envelope of an attempt, whoever it is for', async () => {
    const { initiator, late, made } = await lateDevice();
    world.peers.attach(initiator);
    const { keyRequest } = await world.as(late).requestKey(requestOf(made));
    const keyRequestId = keyRequest?.keyRequestId ?? '';
    await fulfil(initiator, made, late, keyRequestId, 1);
    const second = copy('envelopes', { device_id: `'another'` });
    await expect(world.sql.query(second.replace('{id}', keyRequestId))).rejects.toMatchObject({
      constraint: 'envelopes_one_per_attempt',
    });
  });
});

describe('the sweep alone', { timeout: 60_000 }, () => {
  it('brings a request to its key: without any event', async () => {
    const quiet = await startWorld({ waitMs: 50, sweepMs: 20, offerMs: 60_000 }, { consumers: false });
    try {
      const { initiator, late, made } = await lateDevice(1, quiet);
      const { keyRequest } = await quiet.as(late).requestKey(requestOf(made));
      expect(keyRequest?.state).toBe(KeyRequestState.WAITING_FOR_HOLDER);
      const keyRequestId = keyRequest?.keyRequestId ?? '';
      quiet.peers.attach(initiator);
      const offer = await offered(initiator, keyRequestId, quiet);
      await fulfil(initiator, made, late, keyRequestId, offer.attempt, quiet);
      expect((await quiet.as(late).getInitialSession(made.session)).envelope?.attempt).toBe(1);
    } finally {
      await quiet.stop();
    }
  });

  it('asks one holder first, and the next besides when that one does not answer at once', async () => {
    const hedged = await startWorld(
      { waitMs: 60_000, sweepMs: 20, offerMs: 60_000, hedgeMs: 1_500 },
      { consumers: false },
    );
    const { initiator, others, late, made } = await lateDevice(1, hedged);
    const [bobs] = others as [TestDevice];
    hedged.peers.attach(initiator, bobs);
    const { keyRequest } = await hedged.as(late).requestKey(requestOf(made));
    const asked = async () => {
      const { rows } = await hedged.sql.query(
        'SELECT user_id, attempt FROM offers WHERE key_request_id = $1 ORDER BY attempt',
        [keyRequest?.keyRequestId],
      );
      return rows;
    };
    const [first, ...none] = await asked();
    expect([first.attempt, none]).toEqual([1, []]);
    await vi.waitFor(async () => expect(await asked()).toHaveLength(2), { timeout: 20_000 });
    expect(new Set((await asked()).map(({ user_id }) => user_id)).size).toBe(2);
    await hedged.stop();
  });

  it('asks again when an offer lapses, gives up after the cap, and lets requests expire', async () => {
    const quick = await startWorld(
      { waitMs: 50, sweepMs: 20, offerMs: 30, attemptsMax: 3, expiryMs: 2_500 },
      { consumers: false },
    );
    try {
      const late = await lateDevice(1, quick);
      quick.peers.attach(late.initiator);
      const first = await quick.as(late.late).requestKey(requestOf(late.made));
      const id = first.keyRequest?.keyRequestId ?? '';
      const gaveUp = await quick.event(keyRequestEnded, ({ keyRequestId }) => keyRequestId === id);
      expect(gaveUp).toMatchObject({ state: 'UNFULFILLABLE', because: 'attempts_exhausted' });
      const refusal = await refusalOf(fulfil(late.initiator, late.made, late.late, id, 1, quick));
      expect(refusal).toMatchObject({ reason: 'KEY_REQUEST_ENDED', metadata: { state: 'UNFULFILLABLE' } });

      const alone = await lateDevice(1, quick);
      const waiting = await quick.as(alone.late).requestKey(requestOf(alone.made));
      const expired = await quick.event(
        keyRequestEnded,
        ({ keyRequestId }) => keyRequestId === waiting.keyRequest?.keyRequestId,
      );
      expect(expired).toMatchObject({ state: 'EXPIRED', because: 'expired' });
      await quick.event(
        notificationRequested.session,
        ({ notification }) =>
          notification?.kind === NotificationKind.KEY_REQUEST_ENDED &&
          notification.keyRequestId === waiting.keyRequest?.keyRequestId,
      );
    } finally {
      await quick.stop();
    }
  });
});
