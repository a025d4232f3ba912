import { randomUUID } from 'node:crypto';
import { DeclineReason, type KeyRequest, KeyRequestKind, KeyRequestState } from '@keytrail/contracts';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createPerson, type MadeSession, makeSession, type Person, reseal, type TestDevice } from './people.ts';
import { refusalOf, startWorld, type World } from './world.ts';

let world: World;
beforeAll(async () => {
  // Nobody else's transaction holds back the horizon of this cluster: what is told again then is right, but no test can say how often.
  const undisturbed = { own: true, settings: { autovacuum: 'off' } };
  world = await startWorld({ offerMs: 60_000, waitMs: 60_000 }, { consumers: false, sweep: false }, undisturbed);
}, 60_000);
afterAll(() => world?.stop());

interface Group {
  readonly alice: Person;
  readonly initiator: TestDevice;
  readonly late: TestDevice;
  readonly sessions: MadeSession[];
}

/** Sessions that alice's first device made, and her later device. */
async function lateDevice(count = 1): Promise<Group> {
  const alice = createPerson('alice');
  const initiator = alice.addDevice();
  const sessions = Array.from({ length: count }, () => makeSession({ initiator, covered: [initiator] }));
  for (const made of sessions) {
    await world.store(made);
    world.peers.commit(made, [alice]);
  }
  return { alice, initiator, late: alice.addDevice(), sessions };
}

async function request(late: TestDevice, { session }: MadeSession): Promise<KeyRequest> {
  const { conversationId, sessionId } = session;
  const asked = { requestId: randomUUID(), conversationId, sessionId, kind: KeyRequestKind.MISSING };
  const { keyRequest } = await world.as(late).requestKey(asked);
  if (!keyRequest) throw new Error('no key request');
  return keyRequest;
}

function fulfil(holder: TestDevice, made: MadeSession, to: TestDevice, { keyRequestId, attempt }: KeyRequest) {
  const envelope = reseal(made, holder, to, attempt);
  return world.as(holder).fulfillKeyRequest({ requestId: randomUUID(), keyRequestId, attempt, envelope });
}

const changes = (device: TestDevice, cursor = '', limit = 0) => world.as(device).listKeyChanges({ cursor, limit });

describe('the changes of a device', () => {
  it('begin with what is open, and then tell what became of it', async () => {
    const { initiator, late, sessions } = await lateDevice(2);
    const [first, second] = sessions as [MadeSession, MadeSession];
    world.peers.attach(initiator);
    const ended = await request(late, first);
    await fulfil(initiator, first, late, ended);
    const open = await request(late, second);

    const anew = await changes(late);
    expect(anew).toMatchObject({
      requests: [{ keyRequestId: open.keyRequestId }],
      offers: [],
      reset: false,
      more: false,
    });
    const offered = await changes(initiator);
    expect(offered).toMatchObject({ requests: [], offers: [{ keyRequestId: open.keyRequestId, attempt: 1 }] });
    expect((await changes(late, anew.nextCursor)).requests).toEqual([]);

    await fulfil(initiator, second, late, open);
    const told = await changes(late, anew.nextCursor);
    expect(told.requests).toMatchObject([{ keyRequestId: open.keyRequestId, state: KeyRequestState.FULFILLED }]);
    expect((await changes(initiator)).offers).toEqual([]);
  });

  it('have no offer that was declined or lapsed', async () => {
    const { initiator, late, sessions } = await lateDevice(2);
    world.peers.attach(initiator);
    const [declined, lapsed] = [
      await request(late, sessions[0] as MadeSession),
      await request(late, sessions[1] as MadeSession),
    ];
    expect((await changes(initiator)).offers).toHaveLength(2);
    const reason = DeclineReason.NOT_TRUSTED;
    await world.as(initiator).declineOffer({ keyRequestId: declined.keyRequestId, attempt: 1, reason });
    await world.sql.query('UPDATE offers SET lapses_at = now() WHERE key_request_id = $1', [lapsed.keyRequestId]);
    expect((await changes(initiator)).offers).toEqual([]);
  });

  it('come in pages, each request once', async () => {
    const { initiator, late, sessions } = await lateDevice(7);
    world.peers.attach(initiator);
    const ids: string[] = [];
    for (const made of sessions) ids.push((await request(late, made)).keyRequestId);
    for (const who of [late, initiator]) {
      const seen: string[] = [];
      for (let cursor = '', more = true; more; ) {
        const page = await changes(who, cursor, 3);
        expect(page.requests.length + page.offers.length).toBeLessThanOrEqual(3);
        seen.push(...[...page.requests, ...page.offers].map(({ keyRequestId }) => keyRequestId));
        ({ nextCursor: cursor, more } = page);
      }
      expect(seen).toEqual(ids);
    }
  });

  it('miss nothing of a transaction that commits late', async () => {
    const { late, sessions } = await lateDevice(2);
    const [early, later] = [
      await request(late, sessions[0] as MadeSession),
      await request(late, sessions[1] as MadeSession),
    ];
    const { nextCursor: before } = await changes(late);
    const slow = await world.sql.connect();
    try {
      await slow.query('BEGIN');
      await slow.query('UPDATE key_requests SET holders = holders WHERE key_request_id = $1', [early.keyRequestId]);
      await world.as(late).cancelKeyRequest({ keyRequestId: later.keyRequestId });
      const between = await changes(late, before);
      expect(between.requests.map(({ keyRequestId }) => keyRequestId)).toEqual([later.keyRequestId]);
      await slow.query('COMMIT');
      const after = await changes(late, between.nextCursor);
      expect(after.requests.map(({ keyRequestId }) => keyRequestId)).toContain(early.keyRequestId);
    } finally {
      slow.release();
    }
  });

  it('begin anew with a cursor of another database, and refuse what is no cursor', async () => {
    const { late, sessions } = await lateDevice();
    const open = await request(late, sessions[0] as MadeSession);
    const { nextCursor } = await changes(late);
    const parts = Buffer.from(nextCursor, 'base64url').toString().split(' ');
    const elsewhere = Buffer.from(parts.with(1, 'AAAAAAAAAAAA').join(' ')).toString('base64url');
    const ofTheFuture = Buffer.from(parts.with(3, String(2n ** 40n)).join(' ')).toString('base64url');
    const tooOld = Buffer.from(parts.with(2, '1').join(' ')).toString('base64url');
    for (const cursor of [elsewhere, ofTheFuture, tooOld]) {
      expect(await changes(late, cursor)).toMatchObject({
        reset: true,
        requests: [{ keyRequestId: open.keyRequestId }],
      });
      expect(await world.asPresence.getKeysWaiting({ device: ref(late), cursor })).toMatchObject({ changed: true });
    }
    const bad = { reason: 'INVALID_FIELD', metadata: { field: 'cursor' } };
    expect(await refusalOf(changes(late, 'nonsense'))).toMatchObject(bad);
    expect(await refusalOf(world.asPresence.getKeysWaiting({ device: ref(late), cursor: 'é\0' }))).toMatchObject(bad);
  });
});

const ref = ({ userId, deviceId }: TestDevice) => ({ userId, deviceId });

describe('what waits for a device', () => {
  it('is how many offers stand and requests are open, and whether anything is new', async () => {
    const { initiator, late, sessions } = await lateDevice(2);
    const waiting = (device: TestDevice, cursor = '') =>
      world.asPresence.getKeysWaiting({ device: ref(device), cursor });
    expect(await waiting(late)).toMatchObject({ keyOffers: 0, openKeyRequests: 0, changed: false });
    world.peers.attach(initiator);
    const opened = await request(late, sessions[0] as MadeSession);
    expect(await waiting(late)).toMatchObject({ keyOffers: 0, openKeyRequests: 1, changed: true });
    expect(await waiting(initiator)).toMatchObject({ keyOffers: 1, openKeyRequests: 0, changed: true });

    const { nextCursor: ofLate } = await changes(late);
    const { nextCursor: ofHolder } = await changes(initiator);
    expect(await waiting(late, ofLate)).toMatchObject({ openKeyRequests: 1, changed: false });
    expect(await waiting(initiator, ofHolder)).toMatchObject({ keyOffers: 1, changed: false });
    await fulfil(initiator, sessions[0] as MadeSession, late, opened);
    expect(await waiting(late, ofLate)).toMatchObject({ openKeyRequests: 0, changed: true });
    expect(await waiting(initiator, ofHolder)).toMatchObject({ keyOffers: 0 });
    expect(await waiting(late)).toMatchObject({ changed: false });
  });

  it('is told to presence alone', async () => {
    const { late } = await lateDevice();
    const asked = { device: ref(late), cursor: '' };
    for (const client of [world.as(late), world.asConversation])
      expect((await refusalOf(client.getKeysWaiting(asked))).reason).toBe('CALLER_NOT_ALLOWED');
  });
});
