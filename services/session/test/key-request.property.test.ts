import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { rankHolders } from '../src/domain/holders.ts';
import {
  advance,
  type HolderView,
  isOpen,
  type KeyRequest,
  type KeyRequestEvent,
  newKeyRequest,
  nextStep,
} from '../src/domain/key-request.ts';

const policy = {
  offersAtOnce: 2,
  hedgeMs: 0,
  offerMs: 5_000,
  waitMs: 30_000,
  attemptsMax: 20,
  rejectionsMax: 10,
  offersPerHolder: 2,
};
const hedged = { ...policy, hedgeMs: 500 };
const start = new Date('2026-01-01T00:00:00Z');
const at = (ms: number) => new Date(start.getTime() + ms);

function opened(attemptBase = 0): KeyRequest {
  const fresh = newKeyRequest({
    keyRequestId: 'a0000000-0000-4000-8000-000000000000',
    conversationId: 'c0000000-0000-4000-8000-000000000000',
    sessionId: 'session',
    epoch: 1n,
    requester: { userId: 'alice', deviceId: 'late' },
    kind: 'MISSING',
    priority: 'BACKGROUND',
    requestedAt: start,
    expiresAt: at(7 * 86_400_000),
    traceparent: '',
  });
  return { ...fresh, attemptBase, attempt: attemptBase };
}

const anyEvent: fc.Arbitrary<KeyRequestEvent> = fc.oneof(
  fc.record({
    kind: fc.constantFrom('offered' as const, 'offers_stand' as const, 'nobody_online' as const, 'queued' as const),
    holders: fc.nat(5),
    until: fc.nat(1e9).map(at),
  }),
  fc.record({ kind: fc.constant('postponed' as const), until: fc.nat(1e9).map(at) }),
  fc.record({ kind: fc.constant('fulfilled' as const), attempt: fc.integer({ min: 1, max: 20 }) }),
  fc.constantFrom<KeyRequestEvent>(
    { kind: 'declined' },
    { kind: 'expired' },
    { kind: 'cancelled' },
    { kind: 'unfulfillable', because: 'all_holders_declined' },
  ),
);

const anyHolder: fc.Arbitrary<HolderView> = fc.record({
  device: fc.record({ userId: fc.constantFrom('alice', 'bob'), deviceId: fc.uuid() }),
  online: fc.boolean(),
  declined: fc.boolean(),
  busy: fc.boolean(),
  offeredUntil: fc.option(fc.integer({ min: -10_000, max: 10_000 }).map(at), { nil: undefined }),
  offersMade: fc.nat(3),
});

describe('a key request', () => {
  it('never leaves an end, never loses its next look, and counts attempts up', () => {
    fc.assert(
      fc.property(fc.array(anyEvent, { maxLength: 30 }), fc.nat(20), (events, base) => {
        let request = opened(base);
        let now = 0;
        for (const event of events) {
          now += 1_000;
          const next = advance(request, event, at(now));
          if (!isOpen(request.state)) expect(next).toBe(request);
          else {
            expect(next.version).toBe(request.version + 1);
            expect(next.attempt).toBeGreaterThanOrEqual(request.attempt);
          }
          expect(isOpen(next.state)).toBe(next.endedAt === undefined && next.endedBecause === undefined);
          expect(next.state === 'FULFILLED').toBe(next.acceptedAttempt !== undefined);
          expect(next.nextAttemptAt.getTime()).toBeLessThanOrEqual(next.expiresAt.getTime());
          request = next;
        }
      }),
    );
  });
});

describe('the next step', () => {
  it('is one of the four for any holders, and moves an open request on or ends it', () => {
    fc.assert(
      fc.property(fc.array(anyHolder, { maxLength: 6 }), fc.nat(25), (holders, attempt) => {
        const request = { ...opened(), attempt };
        const step = nextStep(request, holders, policy, start);
        const next = advance(request, step.event, start);
        if (step.kind === 'end') expect(isOpen(next.state)).toBe(false);
        else {
          expect(isOpen(next.state)).toBe(true);
          expect(next.nextAttemptAt.getTime()).toBeGreaterThan(start.getTime());
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it('offers to those alone who are online, have not declined and hold no standing offer, and to no more than allowed at once', () => {
    fc.assert(
      fc.property(fc.array(anyHolder, { maxLength: 6 }), fc.constantFrom(policy, hedged), (holders, chosen) => {
        const step = nextStep(opened(), holders, chosen, start);
        if (step.kind !== 'offer') return;
        const standing = holders.filter(
          ({ declined, offeredUntil }) => !declined && offeredUntil !== undefined && offeredUntil > start,
        );
        expect(step.to.length).toBeGreaterThan(0);
        expect(step.to.length + standing.length).toBeLessThanOrEqual(policy.offersAtOnce);
        for (const device of step.to) {
          const holder = holders.find((one) => one.device === device);
          expect(holder).toMatchObject({ online: true, declined: false, busy: false });
          expect(standing).not.toContain(holder);
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it('asks one holder first where offers are hedged, and the next one besides if that stays unanswered for a moment', () => {
    const views: HolderView[] = ['d0', 'd1', 'd2'].map((deviceId) => ({
      device: { userId: 'bob', deviceId },
      online: true,
      declined: false,
      busy: false,
      offeredUntil: undefined,
      offersMade: 0,
    }));
    const first = nextStep(opened(), views, hedged, start);
    if (first.kind !== 'offer') throw new Error('no offer');
    expect(first.to.map(({ deviceId }) => deviceId)).toEqual(['d0']);
    const offered = advance(opened(), first.event, start);
    expect(offered.nextAttemptAt).toEqual(at(500));

    const later = views.map((view, n) => (n === 0 ? { ...view, offersMade: 1, offeredUntil: first.lapsesAt } : view));
    const second = nextStep(offered, later, hedged, at(500));
    if (second.kind !== 'offer') throw new Error('no second offer');
    expect(second.to.map(({ deviceId }) => deviceId)).toEqual(['d1']);
    // Two offers stand: nobody else is asked before the first of them lapses.
    expect(advance(offered, second.event, at(500)).nextAttemptAt).toEqual(first.lapsesAt);
  });

  it('never gives a request up while somebody who can help has not been asked, within the attempts', () => {
    fc.assert(
      fc.property(fc.array(anyHolder, { minLength: 1, maxLength: 6 }), (holders) => {
        fc.pre(holders.some(({ declined }) => !declined));
        expect(nextStep(opened(), holders, policy, start).kind).not.toBe('end');
      }),
    );
  });

  it('asks each holder that is online once before it asks anybody twice', () => {
    const devices = Array.from({ length: 5 }, (_, i) => ({ userId: 'bob', deviceId: `d${i}` }));
    const asked: string[] = [];
    let request = opened();
    let views: HolderView[] = devices.map((device) => ({
      device,
      online: true,
      declined: false,
      busy: false,
      offeredUntil: undefined,
      offersMade: 0,
    }));
    for (let now = 0; asked.length < 5; now += 6_000) {
      const step = nextStep(request, views, policy, at(now));
      if (step.kind !== 'offer') throw new Error('no offer');
      request = advance(request, step.event, at(now));
      asked.push(...step.to.map(({ deviceId }) => deviceId));
      views = views.map((view) =>
        step.to.includes(view.device)
          ? { ...view, offersMade: view.offersMade + 1, offeredUntil: step.lapsesAt }
          : view,
      );
    }
    expect(new Set(asked.slice(0, 5)).size).toBe(5);
  });
});

describe('holders', () => {
  it("are the requester's own other devices, then the initiator, then the others, whoever is asked", () => {
    const device = fc.record({ userId: fc.constantFrom('alice', 'bob', 'carol'), deviceId: fc.constantFrom('1', '2') });
    fc.assert(
      fc.property(fc.array(device), device, device, fc.uuid(), (holders, requester, initiator, rotateBy) => {
        const ranked = rankHolders(holders, { requester, initiator, rotateBy });
        const rankOf = (one: { userId: string; deviceId: string }) => {
          if (one.userId === requester.userId) return 0;
          return one.userId === initiator.userId && one.deviceId === initiator.deviceId ? 1 : 2;
        };
        const ranks = ranked.map(rankOf);
        expect(ranks).toEqual([...ranks].sort());
        expect(ranked).not.toContainEqual(requester);
        expect(new Set(ranked.map((one) => `${one.userId} ${one.deviceId}`)).size).toBe(ranked.length);
      }),
    );
  });
});
