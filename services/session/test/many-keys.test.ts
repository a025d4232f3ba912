import { randomUUID } from 'node:crypto';
import {
  KeyRequestKind,
  KeyRequestPriority,
  KeyRequestState,
  KeyRequestStateSchema,
  NotificationKind,
  Recovery,
  Remedy,
} from '@keytrail/contracts';
import { notificationRequested } from '@keytrail/events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { personWithSessions, requestKeysOf, wantedOf } from './many-sessions.ts';
import { createPerson, type MadeSession, makeSession } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000, openRequestsMax: 60 }, { sweep: false });
}, 120_000);
afterAll(() => world?.stop());

describe('keys that are asked for together', () => {
  it('each have the result that they would have alone, and what is refused does not keep back the others', async () => {
    const { person, holder, late, made } = await personWithSessions(world, 5);
    const [good, has, gone, lonely, unknown] = made as [
      MadeSession,
      MadeSession,
      MadeSession,
      MadeSession,
      MadeSession,
    ];
    // One has an envelope already, one is of an epoch of others, of one nobody is left who could help, one is none of the caller's business.
    const covered = makeSession({ initiator: holder, covered: [holder, late] });
    await world.store(covered);
    world.peers.commit(covered, [person]);
    world.peers.conversations
      .get(gone.session.conversationId)
      ?.members.set(person.userId, [{ fromEpoch: 7n, toEpoch: 0n }]);
    const other = createPerson('bob');
    const bobs = other.addDevice();
    const alone = makeSession({ initiator: bobs, covered: [bobs] });
    await world.store(alone);
    world.peers.commit(alone, [other, person]);
    world.peers.conversations.get(alone.session.conversationId)?.members.set(other.userId, []);
    world.peers.conversations.get(unknown.session.conversationId)?.members.delete(person.userId);
    world.peers.attach(holder);
    const keys = [good, has, gone, lonely, covered, alone, unknown].map((each) => wantedOf(each));
    const stranger = { ...wantedOf(good), conversationId: randomUUID() };
    const { results } = await world.as(late).requestKeys({ requestId: randomUUID(), keys: [...keys, stranger] });
    expect(
      results.map(
        ({ keyRequest, refused }) => refused?.reason ?? KeyRequestStateSchema.value[keyRequest?.state ?? 0]?.localName,
      ),
    ).toEqual([
      'OFFERED',
      'OFFERED',
      'HISTORY_NOT_SHARED',
      'OFFERED',
      'KEY_REQUEST_NOT_NEEDED',
      'UNFULFILLABLE',
      'NOT_FOUND_OR_NOT_PERMITTED',
      'NOT_FOUND_OR_NOT_PERMITTED',
    ]);
    expect(results[0]).toMatchObject({ recovery: Recovery.PENDING_OFFERED, remedy: Remedy.WAIT });
    expect(results[2]?.refused?.miss).toMatchObject({ remedy: Remedy.BE_ADDED, evidence: { epoch: '1' } });
    expect(results[5]).toMatchObject({
      recovery: Recovery.NO_HOLDER_EXISTS,
      remedy: Remedy.REQUEST_ROTATION,
      keyRequest: { endedBecause: 'no_holder_exists' },
    });
    const [first, second] = results.slice(6);
    expect(first?.refused).toEqual(second?.refused);
    expect(first?.refused?.miss).toBeUndefined();
    for (const [place, key] of keys.entries()) {
      const refused = results[place]?.refused;
      if (!refused) continue;
      const single = await refusalOf(world.as(late).requestKey({ requestId: randomUUID(), ...key }));
      expect([single.reason, single.message]).toEqual([refused.reason, refused.message]);
    }
  });

  it('are asked for once over retries and concurrent calls', async () => {
    const { holder, late, made } = await personWithSessions(world, 6);
    world.peers.attach(holder);
    const client = world.as(late);
    const request = requestKeysOf(made);
    const first = await client.requestKeys(request);
    expect(await client.requestKeys(request)).toEqual(first);
    const fewer = { ...request, keys: request.keys.slice(1) };
    expect((await refusalOf(client.requestKeys(fewer))).reason).toBe('REQUEST_ID_REUSED');
    const again = await Promise.all(
      Array.from({ length: 10 }, (_, n) => client.requestKeys(requestKeysOf(n % 2 === 0 ? made : made.toReversed()))),
    );
    const ids = first.results.map(({ keyRequest }) => keyRequest?.keyRequestId).sort();
    for (const { results } of again)
      expect(results.map(({ keyRequest }) => keyRequest?.keyRequestId).sort()).toEqual(ids);
    const { rows } = await world.sql.query(
      'SELECT count(*)::integer AS n FROM key_requests WHERE device_id = $1 AND user_id = $2',
      [late.deviceId, late.userId],
    );
    expect(rows).toEqual([{ n: 6 }]);
  });

  it('cost one question to each peer, and one notification to a holder', async () => {
    const { holder, late, made } = await personWithSessions(world, 40);
    world.peers.attach(holder);
    const before = { ...world.peers.asked };
    const { results } = await world.as(late).requestKeys(requestKeysOf(made));
    expect(new Set(results.map(({ keyRequest }) => keyRequest?.state))).toEqual(new Set([KeyRequestState.OFFERED]));
    expect(world.peers.asked).toEqual({
      conversation: before.conversation + 1,
      identityKeys: before.identityKeys + 1,
      presence: before.presence + 1,
    });
    const { notification } = await world.event(
      notificationRequested.session,
      ({ devices, notification }) =>
        notification?.kind === NotificationKind.KEY_OFFERED && devices.some(({ userId }) => userId === holder.userId),
    );
    expect(notification).toMatchObject({ offers: 40, keyRequestId: '', sessionId: '', conversationId: '' });
  });

  it('name the request in the notification when it is one', async () => {
    const { holder, late, made } = await personWithSessions(world, 1);
    world.peers.attach(holder);
    const { results } = await world.as(late).requestKeys(requestKeysOf(made));
    const keyRequestId = results[0]?.keyRequest?.keyRequestId;
    const { notification } = await world.event(
      notificationRequested.session,
      (event) => event.notification?.keyRequestId === keyRequestId,
    );
    expect(notification).toMatchObject({
      offers: 1,
      attempt: 1,
      requester: { userId: late.userId, deviceId: late.deviceId },
      conversationId: made[0]?.session.conversationId,
      sessionId: made[0]?.session.sessionId,
    });
  });

  it('are refused beyond what one device may have open, each by itself, and what its user looks at last', async () => {
    const { late, made } = await personWithSessions(world, 62);
    const client = world.as(late);
    const keys = made.map((each, n) =>
      wantedOf(each, n >= 60 ? KeyRequestPriority.FOREGROUND : KeyRequestPriority.BACKGROUND),
    );
    const { results } = await client.requestKeys({ requestId: randomUUID(), keys });
    const refused = results.flatMap(({ refused: refusal }, place) => (refusal ? [{ place, ...refusal }] : []));
    expect(refused.map(({ place }) => place)).toEqual([58, 59]);
    expect(refused[0]).toMatchObject({
      reason: 'LIMIT_EXCEEDED',
      metadata: { limit: '60', scope: 'open key requests of a device' },
    });
    expect(refused[0]?.retryAfterMs).toBeGreaterThan(0);
    const single = { requestId: randomUUID(), ...wantedOf(made[59] as MadeSession) };
    expect((await refusalOf(client.requestKey(single))).reason).toBe('LIMIT_EXCEEDED');
    // One that is open is found as before.
    const open = await client.requestKey({ requestId: randomUUID(), ...wantedOf(made[0] as MadeSession) });
    expect(open.keyRequest?.keyRequestId).toBe(results[0]?.keyRequest?.keyRequestId);
  });

  it('are refused as a whole when one session is named twice, or a peer is away', async () => {
    const { late, made } = await personWithSessions(world, 1);
    const key = wantedOf(made[0] as MadeSession);
    const shouted = { ...key, conversationId: key.conversationId.toUpperCase() };
    for (const twice of [key, shouted, { ...key, kind: KeyRequestKind.REWRAP }])
      expect(
        await refusalOf(world.as(late).requestKeys({ requestId: randomUUID(), keys: [key, twice] })),
      ).toMatchObject({ reason: 'INVALID_FIELD', fields: [{ field: 'keys[1]' }] });
    const alone = await world.another({ peerConversation: '127.0.0.1:1' }, { consumers: false, sweep: false });
    try {
      const request = requestKeysOf(made);
      expect((await refusalOf(alone.as(late).requestKeys(request))).reason).toBe('PEER_UNAVAILABLE');
      const { results } = await world.as(late).requestKeys(request);
      expect(await alone.as(late).requestKeys(request)).toMatchObject({
        results: [{ keyRequest: { keyRequestId: results[0]?.keyRequest?.keyRequestId } }],
      });
    } finally {
      await alone.stop();
    }
  });

  it('end when their requester loses its right while they wait, and offer nothing', async () => {
    const { person, holder, late, made } = await personWithSessions(world, 3);
    const { results } = await world.as(late).requestKeys(requestKeysOf(made));
    expect(results.map(({ recovery }) => recovery)).toEqual(Array(3).fill(Recovery.PENDING_NO_HOLDER_ONLINE));
    for (const { session } of made.slice(1))
      world.peers.conversations.get(session.conversationId)?.members.set(person.userId, []);
    world.peers.attach(holder);
    await world.attached(holder);
    const offered = results[0]?.keyRequest?.keyRequestId;
    await world.event(
      notificationRequested.session,
      ({ notification }) =>
        notification?.kind === NotificationKind.KEY_OFFERED && notification.keyRequestId === offered,
    );
    const { rows } = await world.sql.query(
      `SELECT state, ended_because, (SELECT count(*)::integer FROM offers o WHERE o.key_request_id = k.key_request_id) AS offers
       FROM key_requests k WHERE user_id = $1 ORDER BY state`,
      [person.userId],
    );
    const ended = { state: 'UNFULFILLABLE', ended_because: 'requester_not_entitled', offers: 0 };
    expect(rows).toEqual([{ state: 'OFFERED', ended_because: null, offers: 1 }, ended, ended]);
  });

  it('are found by whoever writes a conversation in another way', async () => {
    const { holder, late, made } = await personWithSessions(world, 1);
    world.peers.attach(holder);
    const key = wantedOf(made[0] as MadeSession);
    const known = world.peers.conversations.get(key.conversationId);
    if (known) world.peers.conversations.set(key.conversationId.toUpperCase(), known);
    const keys = [{ ...key, conversationId: key.conversationId.toUpperCase() }];
    const { results } = await world.as(late).requestKeys({ requestId: randomUUID(), keys });
    expect(results[0]?.keyRequest).toMatchObject({
      state: KeyRequestState.OFFERED,
      conversationId: key.conversationId,
    });
  });
});
