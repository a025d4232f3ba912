import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import {
  DeviceRefSchema,
  type Envelope,
  type KeyRequest,
  KeyRequestState,
  NotificationKind,
} from '@keytrail/contracts';
import { keyDelivered, notificationRequested } from '@keytrail/events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { personWithSessions, requestKeysOf } from './many-sessions.ts';
import { createPerson, type MadeSession, reseal, type TestDevice } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000 }, { sweep: false });
}, 120_000);
afterAll(() => world?.stop());

interface Fulfilment {
  readonly keyRequestId: string;
  readonly attempt: number;
  readonly envelope: Envelope;
}

/** That many requests of one device, offered to the holder, each with the envelope that fulfils it. */
async function offered(count: number, others: Parameters<typeof personWithSessions>[2] = []) {
  const linked = await personWithSessions(world, count, others);
  const { holder, late, made } = linked;
  world.peers.attach(holder, ...others.flatMap(({ devices }) => devices));
  const { results } = await world.as(late).requestKeys(requestKeysOf(made));
  const requests = results.map(({ keyRequest }) => keyRequest as KeyRequest);
  expect(new Set(requests.map(({ state }) => state))).toEqual(new Set([KeyRequestState.OFFERED]));
  const sealedBy = (device: TestDevice): Fulfilment[] =>
    requests.map(({ keyRequestId, attempt }, n) => ({
      keyRequestId,
      attempt,
      envelope: reseal(made[n] as MadeSession, device, late, attempt),
    }));
  return { ...linked, requests, sealedBy, fulfilments: sealedBy(holder) };
}

function fulfil(holder: TestDevice, fulfilments: readonly Fulfilment[], requestId = randomUUID()) {
  return world.as(holder).fulfillKeyRequests({ requestId, fulfilments: [...fulfilments] });
}

describe('envelopes that are sent together', () => {
  it('are accepted, cost one question to each peer asked, and can be read', async () => {
    const { holder, late, made, fulfilments } = await offered(30);
    const before = { ...world.peers.asked };
    const { results } = await fulfil(holder, fulfilments);
    expect(results.map(({ keyRequest }) => keyRequest?.state)).toEqual(Array(30).fill(KeyRequestState.FULFILLED));
    const { rows } = await world.sql.query(
      'SELECT count(*)::int AS envelopes FROM envelopes JOIN sessions USING (conversation_id, session_id) WHERE key_request_id = ANY ($1) AND envelopes.writer_build = sessions.writer_build',
      [fulfilments.map(({ keyRequestId }) => keyRequestId)],
    );
    expect(rows).toEqual([{ envelopes: 30 }]);
    expect(world.peers.asked).toEqual({
      conversation: before.conversation + 1,
      identityKeys: before.identityKeys + 1,
      presence: before.presence,
    });
    for (const { session } of made)
      expect((await world.as(late).getInitialSession(session)).envelope).toMatchObject({ attempt: 1 });
    // Too many to name: the device pulls what changed.
    const { notification } = await world.event(
      notificationRequested.session,
      ({ devices, notification }) =>
        notification?.kind === NotificationKind.KEY_DELIVERED && devices[0]?.userId === late.userId,
    );
    expect(notification).toMatchObject({ sessionId: '', keyRequestId: '' });
    await world.event(keyDelivered, ({ sessionId }) => sessionId === made[29]?.session.sessionId);
  });

  it('are told of by name when they are few', async () => {
    const { holder, late, made, fulfilments } = await offered(3);
    await fulfil(holder, fulfilments);
    for (const { session } of made)
      await world.event(
        notificationRequested.session,
        ({ devices, notification }) =>
          notification?.kind === NotificationKind.KEY_DELIVERED &&
          notification.sessionId === session.sessionId &&
          devices[0]?.deviceId === late.deviceId,
      );
  });

  it('are each refused as alone, and the others are accepted', async () => {
    const { person, holder, late, made, requests, fulfilments } = await offered(8);
    const stranger = createPerson('mallory').addDevice();
    const envelopeOf = (n: number) => fulfilments[n]?.envelope as Envelope;
    const sent = fulfilments.map((fulfilment, n): Fulfilment => {
      if (n === 1) return { ...fulfilment, attempt: 7, envelope: { ...envelopeOf(n), attempt: 7 } };
      if (n === 2)
        return {
          ...fulfilment,
          envelope: { ...envelopeOf(n), recipient: create(DeviceRefSchema, { userId: person.userId, deviceId: 'x' }) },
        };
      if (n === 3) return { ...fulfilment, envelope: { ...envelopeOf(n), signature: new Uint8Array(64).fill(7) } };
      if (n === 4) return { ...fulfilment, envelope: envelopeOf(0) };
      if (n === 5)
        return { ...fulfilment, envelope: { ...envelopeOf(n), sealerSigningKey: stranger.signingKey.publicKey } };
      return fulfilment;
    });
    await world.as(late).cancelKeyRequest({ keyRequestId: requests[6]?.keyRequestId ?? '' });
    world.peers.conversations.get(made[7]?.session.conversationId ?? '')?.members.set(person.userId, []);
    const { results } = await fulfil(holder, sent);
    expect(results.map(({ keyRequest, refused }) => refused?.reason ?? keyRequest?.state)).toEqual([
      KeyRequestState.FULFILLED,
      'NOT_OFFERED',
      'INVALID_FIELD',
      'SIGNATURE_INVALID',
      'SIGNATURE_INVALID',
      'INVALID_FIELD',
      'KEY_REQUEST_ENDED',
      'NOT_ENTITLED',
    ]);
    expect(results[2]?.refused?.metadata).toMatchObject({ field: 'fulfilments[2].envelope.recipient' });
    const { rows } = await world.sql.query(
      'SELECT count(*)::integer AS n FROM envelopes WHERE user_id = $1 AND attempt > 0',
      [person.userId],
    );
    expect(rows).toEqual([{ n: 1 }]);
    // What was refused can be sent again, and is judged anew; what was accepted was accepted once.
    const again = await fulfil(holder, [fulfilments[0] as Fulfilment, fulfilments[3] as Fulfilment]);
    expect(again.results.map(({ keyRequest, refused }) => refused?.reason ?? keyRequest?.state)).toEqual([
      'ATTEMPT_ALREADY_FULFILLED',
      KeyRequestState.FULFILLED,
    ]);
  });

  it('get the same answer to the same request id, also when their holder has lost its rights since', async () => {
    const { person, holder, made, fulfilments } = await offered(2);
    const requestId = randomUUID();
    const first = await fulfil(holder, fulfilments, requestId);
    for (const { session } of made)
      world.peers.conversations.get(session.conversationId)?.members.set(person.userId, []);
    expect(await fulfil(holder, fulfilments, requestId)).toEqual(first);
    expect((await refusalOf(fulfil(holder, fulfilments.slice(1), requestId))).reason).toBe('REQUEST_ID_REUSED');
  });

  it('are refused as a whole when one request is named twice', async () => {
    const { holder, fulfilments } = await offered(1);
    const [one] = fulfilments as [Fulfilment];
    const shouted = { ...one, keyRequestId: one.keyRequestId.toUpperCase() };
    expect(await refusalOf(fulfil(holder, [one, shouted]))).toMatchObject({
      reason: 'INVALID_FIELD',
      fields: [{ field: 'fulfilments[1].key_request_id' }],
    });
  });

  it('of two holders at the same time, in opposite orders, are accepted once for each attempt', async () => {
    const bob = createPerson('bob');
    const bobs = bob.addDevice();
    const { person, holder, fulfilments, sealedBy } = await offered(20, [bob]);
    const both = await Promise.all([fulfil(holder, fulfilments), fulfil(bobs, sealedBy(bobs).toReversed())]);
    const accepted = both.flatMap(({ results }) => results.filter(({ keyRequest }) => keyRequest));
    const refused = both.flatMap(({ results }) =>
      results.flatMap(({ refused: refusal }) => (refusal ? [refusal.reason] : [])),
    );
    expect(accepted).toHaveLength(20);
    expect(refused).toEqual(Array(20).fill('ATTEMPT_ALREADY_FULFILLED'));
    const { rows } = await world.sql.query(
      'SELECT count(*)::integer AS n FROM envelopes WHERE user_id = $1 AND attempt > 0',
      [person.userId],
    );
    expect(rows).toEqual([{ n: 20 }]);
  });
});
