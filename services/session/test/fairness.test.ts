import { randomUUID } from 'node:crypto';
import { KeyRequestPriority, KeyRequestState } from '@keytrail/contracts';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { claimDueKeyRequests } from '../src/store/key-requests.ts';
import { personWithSessions, requestKeysOf, wantedOf, workThrough } from './many-sessions.ts';
import type { MadeSession, TestDevice } from './people.ts';
import { offersTo, startWorld, type World } from './world.ts';

const atOnce = 8;

let world: World;
beforeAll(async () => {
  // Long times: what goes on goes on by itself, not by the sweep.
  world = await startWorld({ offerMs: 600_000, waitMs: 600_000, offersPerHolder: atOnce }, { sweep: false });
}, 120_000);
afterAll(() => world?.stop());

function sessionsOf(...wanted: readonly { made: readonly MadeSession[]; to: TestDevice }[]) {
  return new Map(
    wanted.flatMap(({ made, to }) => made.map((each) => [each.session.sessionId, { made: each, to }] as const)),
  );
}

async function standingOffers(): Promise<number> {
  const { rows } = await world.sql.query<{ most: number }>(
    `SELECT coalesce(max(n), 0)::integer AS most FROM (
       SELECT count(*) AS n FROM offers o JOIN key_requests k USING (key_request_id)
       WHERE k.state = 'OFFERED' AND o.lapses_at > now() AND o.declined_at IS NULL
       GROUP BY o.user_id, o.device_id, k.user_id, k.device_id) held`,
  );
  return rows[0]?.most ?? 0;
}

describe('a storm of requests', () => {
  it('of 500 from one device is worked off at once, and does not delay the one request of another', {
    timeout: 240_000,
  }, async () => {
    const { person, holder, late, made } = await personWithSessions(world, 501);
    const [single, ...storm] = made as [MadeSession, ...MadeSession[]];
    const other = person.addDevice();
    world.peers.attach(holder);
    const { results } = await world.as(late).requestKeys(requestKeysOf(storm.slice(0, 500)));
    const states = Map.groupBy(results, ({ keyRequest }) => keyRequest?.state);
    expect(states.get(KeyRequestState.OFFERED)).toHaveLength(atOnce);
    expect(states.get(KeyRequestState.WAITING_FOR_HOLDER)).toHaveLength(500 - atOnce);

    const sessions = sessionsOf({ made: storm, to: late }, { made: [single], to: other });
    let worked = 0;
    let askedAt = 0;
    let servedAt = 0;
    let asking: Promise<unknown> | undefined;
    while (worked < 501) {
      // An empty page: the next offers are on their way.
      await vi.waitFor(
        async () =>
          expect(
            await workThrough(world, holder, sessions, 5, async (seen) => {
              worked += seen.length;
              if (servedAt === 0 && seen.includes(single.session.sessionId)) servedAt = worked;
            }),
          ).toBe(true),
        { timeout: 20_000, interval: 5 },
      );
      expect(await standingOffers()).toBeLessThanOrEqual(atOnce);
      if (worked >= 50 && !asking) {
        // In the middle of the storm, while its holder goes on.
        asking = world.as(other).requestKey({ requestId: randomUUID(), ...wantedOf(single) });
        asking.then(() => {
          askedAt = worked;
        });
      }
    }
    await asking;
    expect(askedAt).toBeGreaterThan(0);
    // Of the pages that were listed before it was stored, one may be on its way.
    expect(servedAt - askedAt).toBeLessThanOrEqual(10);
    expect(servedAt).toBeLessThan(501);
    const { rows } = await world.sql.query(
      'SELECT state, count(*)::integer AS n FROM key_requests WHERE user_id = $1 GROUP BY state',
      [person.userId],
    );
    expect(rows).toEqual([{ state: 'FULFILLED', n: 501 }]);
  });

  it('has what the user looks at before what nobody does, also when that is said later', async () => {
    const { holder, late, made } = await personWithSessions(world, 40);
    world.peers.attach(holder);
    const client = world.as(late);
    const keys = made.map((each, n) =>
      wantedOf(each, n >= 36 ? KeyRequestPriority.FOREGROUND : KeyRequestPriority.BACKGROUND),
    );
    await client.requestKeys({ requestId: randomUUID(), keys });
    const looked = new Set(made.slice(36).map(({ session }) => session.sessionId));
    const first = await offersTo(world.as(holder));
    expect(new Set(first.slice(0, 4).map(({ sessionId }) => sessionId))).toEqual(looked);

    // One that waits for its turn is looked at now: it does not wait behind those that nobody looks at.
    const waiting = made[35] as MadeSession;
    const raised = await client.requestKey({
      requestId: randomUUID(),
      ...wantedOf(waiting, KeyRequestPriority.FOREGROUND),
    });
    expect(raised.keyRequest?.priority).toBe(KeyRequestPriority.FOREGROUND);
    await vi.waitFor(async () => {
      const offers = (await offersTo(world.as(holder))).map(({ sessionId }) => sessionId);
      expect(offers.slice(0, 5)).toContain(waiting.session.sessionId);
    }, 10_000);
    // Asked again as before, it stays raised.
    const again = await client.requestKey({ requestId: randomUUID(), ...wantedOf(waiting) });
    expect(again.keyRequest?.priority).toBe(KeyRequestPriority.FOREGROUND);
  });

  it('goes on when an offer is declined or a request is cancelled, by whomever', async () => {
    const { holder, late, made } = await personWithSessions(world, atOnce + 3);
    world.peers.attach(holder);
    await world.as(late).requestKeys(requestKeysOf(made));
    const offers = await offersTo(world.as(holder));
    expect(offers).toHaveLength(atOnce);
    const [declined, cancelled, ended] = offers;
    await world.as(holder).declineOffer({ keyRequestId: declined?.keyRequestId ?? '', attempt: 1, reason: 5 });
    await world.as(late).cancelKeyRequest({ keyRequestId: cancelled?.keyRequestId ?? '' });
    await world.operator.endKeyRequest({ keyRequestId: ended?.keyRequestId ?? '' });
    await vi.waitFor(async () => {
      const now = (await offersTo(world.as(holder))).map(({ keyRequestId }) => keyRequestId);
      expect(now).toHaveLength(atOnce);
      for (const gone of [declined, cancelled, ended]) expect(now).not.toContain(gone?.keyRequestId);
    }, 10_000);
  });

  it('waits for its turn and wants no holder, as one is there', async () => {
    const { holder, late, made } = await personWithSessions(world, atOnce + 1);
    world.peers.attach(holder);
    const { results } = await world.as(late).requestKeys(requestKeysOf(made));
    const queued = results.find(
      ({ keyRequest }) => keyRequest?.state === KeyRequestState.WAITING_FOR_HOLDER,
    )?.keyRequest;
    const { rows } = await world.sql.query(
      `SELECT queued_at IS NOT NULL AS queued, holder_wanted_at FROM key_requests WHERE key_request_id = $1`,
      [queued?.keyRequestId],
    );
    expect(rows).toEqual([{ queued: true, holder_wanted_at: null }]);
  });

  it('that is due all at once lets the others take turns with it', async () => {
    const [big, small] = [await personWithSessions(world, 30), await personWithSessions(world, 1)];
    for (const { late, made } of [big, small]) await world.as(late).requestKeys(requestKeysOf(made));
    await world.sql.query(
      `UPDATE key_requests SET next_attempt_at = now() - CASE WHEN user_id = $1 THEN interval '1 minute' ELSE interval '1 second' END
       WHERE user_id IN ($1, $2)`,
      [big.person.userId, small.person.userId],
    );
    const claimed = await claimDueKeyRequests(world.service.db, 2, 1_000);
    expect(new Set(claimed.map(({ requester }) => requester.userId))).toEqual(
      new Set([big.person.userId, small.person.userId]),
    );
  });
});
