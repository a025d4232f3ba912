import { randomUUID } from 'node:crypto';
import {
  KeyRejectionReason,
  KeyRequestKind,
  KeyRequestPriority,
  KeyRequestState,
  NotificationKind,
  Recovery,
  Remedy,
} from '@keytrail/contracts';
import { keyRequestEnded, notificationRequested } from '@keytrail/events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createPerson, type MadeSession, makeSession, reseal, type TestDevice } from './people.ts';
import { offersTo, refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000, rejectionsMax: 4 }, { sweep: false });
}, 120_000);
afterAll(() => world?.stop());

/** A session of Alice with Bob, whose device has an envelope of hers that it will not like. */
async function delivered(holders = 1) {
  const [alice, bob] = [createPerson('alice'), createPerson('bob')];
  const initiator = alice.addDevice();
  const others = Array.from({ length: holders - 1 }, () => alice.addDevice());
  const bobs = bob.addDevice();
  const made = makeSession({ initiator, covered: [initiator, ...others, bobs] });
  await world.store(made);
  world.peers.commit(made, [alice, bob]);
  return { alice, bob, initiator, others, bobs, made };
}

function rejectionOf(made: MadeSession, attempt = 0, reason: KeyRejectionReason = KeyRejectionReason.COMMITMENT) {
  const { conversationId, sessionId } = made.session;
  return { requestId: randomUUID(), conversationId, sessionId, attempt, reason };
}

async function fulfil(holder: TestDevice, made: MadeSession, to: TestDevice, keyRequestId: string, attempt: number) {
  const envelope = reseal(made, holder, to, attempt);
  await world.as(holder).fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope });
}

async function rejectionsOf(made: MadeSession) {
  const { rows } = await world.sql.query(
    'SELECT attempt, rejected_because FROM envelopes WHERE session_id = $1 AND rejected_at IS NOT NULL ORDER BY attempt',
    [made.session.sessionId],
  );
  return rows;
}

describe('a key that is rejected', () => {
  it('is recorded with its reason, and asked for from another holder than its sealer', async () => {
    const { initiator, others, bobs, made } = await delivered(2);
    const [second] = others as [TestDevice];
    world.peers.attach(initiator, second);
    const request = rejectionOf(made);
    const { keyRequest, recovery, remedy } = await world.as(bobs).rejectKey(request);
    expect(keyRequest).toMatchObject({
      state: KeyRequestState.OFFERED,
      kind: KeyRequestKind.REJECTED,
      priority: KeyRequestPriority.BACKGROUND,
      attempt: 1,
    });
    expect([recovery, remedy]).toEqual([Recovery.PENDING_OFFERED, Remedy.WAIT]);
    expect(await rejectionsOf(made)).toEqual([{ attempt: 0, rejected_because: 'COMMITMENT' }]);
    expect(await offersTo(world.as(initiator))).toEqual([]);
    expect(await offersTo(world.as(second))).toHaveLength(1);

    // The same call again, and another one for the same envelope: one request, and the first reason stands.
    expect((await world.as(bobs).rejectKey(request)).keyRequest).toEqual(keyRequest);
    const other = await world.as(bobs).rejectKey(rejectionOf(made, 0, KeyRejectionReason.CANNOT_OPEN));
    expect(other.keyRequest?.keyRequestId).toBe(keyRequest?.keyRequestId);
    expect(await rejectionsOf(made)).toEqual([{ attempt: 0, rejected_because: 'COMMITMENT' }]);
    const reused = { ...request, reason: KeyRejectionReason.SIGNATURE };
    expect((await refusalOf(world.as(bobs).rejectKey(reused))).reason).toBe('REQUEST_ID_REUSED');

    await fulfil(second, made, bobs, keyRequest?.keyRequestId ?? '', 1);
    expect(await refusalOf(world.as(bobs).rejectKey(rejectionOf(made)))).toMatchObject({
      reason: 'KEY_REQUEST_NOT_NEEDED',
      metadata: { kind: 'REJECTED' },
    });
  });

  it('is asked for from its sealer again when nobody else is left, and given up at once after the cap', async () => {
    const { initiator, bobs, made } = await delivered();
    world.peers.attach(initiator);
    for (let attempt = 0; attempt < 2; attempt++) {
      const { keyRequest } = await world.as(bobs).rejectKey(rejectionOf(made, attempt));
      expect(keyRequest).toMatchObject({ state: KeyRequestState.OFFERED, attempt: attempt + 1 });
      await fulfil(initiator, made, bobs, keyRequest?.keyRequestId ?? '', attempt + 1);
    }
    const last = await world.as(bobs).rejectKey(rejectionOf(made, 2, KeyRejectionReason.SIGNATURE));
    expect(last).toMatchObject({
      recovery: Recovery.NO_HOLDER_EXISTS,
      remedy: Remedy.REQUEST_ROTATION,
      keyRequest: { state: KeyRequestState.UNFULFILLABLE, endedBecause: 'all_holders_declined' },
    });
    const ended = last.keyRequest?.keyRequestId;
    await world.event(keyRequestEnded, ({ keyRequestId }) => keyRequestId === ended);
    await world.event(
      notificationRequested.session,
      ({ notification }) =>
        notification?.kind === NotificationKind.KEY_REQUEST_ENDED && notification.keyRequestId === ended,
    );
  });

  it('is given up when so many were rejected, whoever is left', async () => {
    const { initiator, others, bobs, made } = await delivered(6);
    world.peers.attach(initiator, ...others);
    for (let attempt = 0; attempt < 3; attempt++) {
      const { keyRequest } = await world.as(bobs).rejectKey(rejectionOf(made, attempt));
      expect(keyRequest?.state).toBe(KeyRequestState.OFFERED);
      const { rows } = await world.sql.query<{ device_id: string }>(
        'SELECT device_id FROM offers WHERE key_request_id = $1 ORDER BY attempt, device_id LIMIT 1',
        [keyRequest?.keyRequestId],
      );
      const asked = [initiator, ...others].find(({ deviceId }) => deviceId === rows[0]?.device_id) as TestDevice;
      await fulfil(asked, made, bobs, keyRequest?.keyRequestId ?? '', attempt + 1);
    }
    const last = await world.as(bobs).rejectKey(rejectionOf(made, 3));
    expect(last).toMatchObject({
      remedy: Remedy.REQUEST_ROTATION,
      keyRequest: { state: KeyRequestState.UNFULFILLABLE, endedBecause: 'attempts_exhausted' },
    });
    const sealers = await world.sql.query(
      'SELECT count(DISTINCT sealer_device_id)::integer AS n FROM envelopes WHERE session_id = $1 AND device_id = $2 AND user_id = $3',
      [made.session.sessionId, bobs.deviceId, bobs.userId],
    );
    expect(sealers.rows).toEqual([{ n: 4 }]);
  });

  it('raises the request that is open', async () => {
    const { initiator, others, bobs, made } = await delivered(2);
    const { conversationId, sessionId } = made.session;
    const open = await world
      .as(bobs)
      .requestKey({ requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.REWRAP });
    expect(open.keyRequest).toMatchObject({ state: KeyRequestState.WAITING_FOR_HOLDER, kind: KeyRequestKind.REWRAP });
    expect([open.recovery, open.remedy]).toEqual([Recovery.PENDING_NO_HOLDER_ONLINE, Remedy.WAIT]);
    world.peers.attach(initiator, ...others);
    const raised = await world.as(bobs).rejectKey({ ...rejectionOf(made), priority: KeyRequestPriority.FOREGROUND });
    expect(raised.keyRequest).toMatchObject({
      keyRequestId: open.keyRequest?.keyRequestId,
      kind: KeyRequestKind.REJECTED,
      priority: KeyRequestPriority.FOREGROUND,
    });
    // It goes on now, and passes over the sealer.
    await world.event(
      notificationRequested.session,
      ({ notification }) =>
        notification?.kind === NotificationKind.KEY_OFFERED &&
        notification.keyRequestId === open.keyRequest?.keyRequestId,
    );
    const { rows } = await world.sql.query('SELECT DISTINCT device_id FROM offers WHERE key_request_id = $1', [
      open.keyRequest?.keyRequestId,
    ]);
    expect(rows).toEqual([{ device_id: others[0]?.deviceId }]);
  });

  it('moves an open request on to the next holder, though it is offered to the sealer', async () => {
    const { initiator, others, bobs, made } = await delivered(2);
    const [second] = others as [TestDevice];
    const { conversationId, sessionId } = made.session;
    world.peers.attach(initiator);
    const open = await world
      .as(bobs)
      .requestKey({ requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.REWRAP });
    expect(open.keyRequest?.state).toBe(KeyRequestState.OFFERED);
    expect(await offersTo(world.as(initiator))).toHaveLength(1);
    world.peers.attach(second);
    await world.as(bobs).rejectKey(rejectionOf(made));
    await world.event(
      notificationRequested.session,
      ({ notification, devices }) =>
        notification?.kind === NotificationKind.KEY_OFFERED &&
        notification.keyRequestId === open.keyRequest?.keyRequestId &&
        devices.some(({ deviceId, userId }) => deviceId === second.deviceId && userId === second.userId),
    );
  });

  it('is refused like a miss to those who may not have it, and when there is no such envelope', async () => {
    const { bob, bobs, made } = await delivered();
    expect(await refusalOf(world.as(bobs).rejectKey(rejectionOf(made, 9)))).toMatchObject({
      reason: 'KEY_REQUEST_NOT_NEEDED',
    });
    const mallory = createPerson('mallory').addDevice();
    const stranger = await refusalOf(world.as(mallory).rejectKey(rejectionOf(made)));
    expect(stranger).toMatchObject({ reason: 'NOT_FOUND_OR_NOT_PERMITTED', miss: undefined });
    world.peers.conversations
      .get(made.session.conversationId)
      ?.members.set(bob.userId, [{ fromEpoch: 3n, toEpoch: 0n }]);
    expect((await refusalOf(world.as(bobs).rejectKey(rejectionOf(made)))).reason).toBe('HISTORY_NOT_SHARED');
    expect(await rejectionsOf(made)).toEqual([]);
  });

  it('may have a reason only when it is rejected, and one of the known ones', async () => {
    const { made } = await delivered();
    const set = (change: string) =>
      world.sql.query(`UPDATE envelopes SET ${change} WHERE session_id = $1`, [made.session.sessionId]);
    await expect(set(`rejected_because = 'SIGNATURE'`)).rejects.toMatchObject({
      constraint: 'envelopes_rejected_for_a_reason',
    });
    await expect(set(`rejected_at = now(), rejected_because = 'TASTE'`)).rejects.toMatchObject({
      constraint: 'envelopes_rejection_reason_known',
    });
  });
});
