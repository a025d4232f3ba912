import { ConversationKind, HistoryPolicy, MemberRole, RotationDueReason } from '@keytrail/contracts';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { incompletenessOf } from '../src/domain/completeness.ts';
import {
  firstEpochOfNewMember,
  isEntitled,
  isMemberNow,
  type MembershipSpan,
  readableEpochs,
} from '../src/domain/entitlement.ts';
import { takeWhileFits } from '../src/domain/pages.ts';
import {
  mayAdd,
  mayChangePolicy,
  mayRemove,
  problemOfNewRoster,
  promotedIn,
  rotationDueAfter,
} from '../src/domain/roster.ts';
import { judgeSending } from '../src/domain/sending.ts';

const own = HistoryPolicy.OWN_MEMBERSHIP;
const shared = HistoryPolicy.SHARED;
const none = RotationDueReason.UNSPECIFIED;

type Event = 'add' | 'remove' | 'rotate';
const histories = fc.array(fc.constantFrom<Event>('add', 'remove', 'rotate'), { maxLength: 40 });

/** What a history does to one user, step by step, told without spans: at which epochs a session was made with the user in the roster. */
function live(events: readonly Event[], policy: HistoryPolicy) {
  let epoch = 1n;
  let present = false;
  let refusesMessages = false;
  const spans: { fromEpoch: bigint; toEpoch?: bigint }[] = [];
  const sealedTo = new Set<bigint>();
  const presentDuring = new Set<bigint>();
  for (const event of events) {
    if (event === 'add' && !present) {
      spans.push({ fromEpoch: firstEpochOfNewMember(epoch, policy, spans) });
      present = true;
      if (!refusesMessages) presentDuring.add(epoch);
    } else if (event === 'remove' && present) {
      const last = spans.at(-1);
      if (last) last.toEpoch = epoch;
      present = false;
      refusesMessages = true;
    } else if (event === 'rotate') {
      epoch += 1n;
      refusesMessages = false;
      if (present) {
        sealedTo.add(epoch);
        presentDuring.add(epoch);
      }
    }
  }
  return { epoch, present, spans: spans as readonly MembershipSpan[], sealedTo, presentDuring };
}

function epochsUpTo(epoch: bigint): bigint[] {
  return Array.from({ length: Number(epoch) + 1 }, (_, index) => BigInt(index + 1));
}

describe('entitlement by own membership', () => {
  it('is to exactly the epochs whose session was made with the user in the roster, and while a member to the next one', () => {
    fc.assert(
      fc.property(histories, (events) => {
        const { epoch, present, spans, sealedTo } = live(events, own);
        for (const asked of epochsUpTo(epoch)) {
          const expected = asked > epoch ? present : sealedTo.has(asked);
          expect(isEntitled(spans, own, asked)).toBe(expected);
        }
        expect(isMemberNow(spans)).toBe(present);
      }),
    );
  });

  it('has spans that never overlap', () => {
    fc.assert(
      fc.property(histories, fc.constantFrom(own, shared), (events, policy) => {
        const { spans } = live(events, policy);
        const whole = spans.filter(({ fromEpoch, toEpoch }) => toEpoch === undefined || toEpoch >= fromEpoch);
        for (const [index, span] of whole.entries()) {
          const before = whole[index - 1];
          if (before) expect(before.toEpoch ?? span.fromEpoch).toBeLessThan(span.fromEpoch);
        }
        for (const { fromEpoch, toEpoch } of spans)
          if (toEpoch !== undefined) expect(toEpoch).toBeGreaterThanOrEqual(fromEpoch - 1n);
      }),
    );
  });
});

describe('entitlement by shared history', () => {
  it('is to everything up to the last epoch of the user, and to everything for a member', () => {
    fc.assert(
      fc.property(histories, (events) => {
        const { epoch, present, spans } = live(events, shared);
        const last = spans.at(-1)?.toEpoch;
        for (const asked of epochsUpTo(epoch)) {
          const expected = present || (last !== undefined && asked <= last);
          expect(isEntitled(spans, shared, asked)).toBe(expected);
        }
      }),
    );
  });

  it('gives never less than own membership does', () => {
    fc.assert(
      fc.property(histories, (events) => {
        const { epoch, spans } = live(events, own);
        for (const asked of epochsUpTo(epoch))
          if (isEntitled(spans, own, asked)) expect(isEntitled(spans, shared, asked)).toBe(true);
      }),
    );
  });
});

it('entitles a stranger to nothing', () => {
  expect(readableEpochs([], [{ fromEpoch: 1n, policy: own }])).toEqual([]);
  expect(readableEpochs([], [{ fromEpoch: 1n, policy: shared }])).toEqual([]);
});

describe('sending', () => {
  it('is never accepted under a session that a removed member could read', () => {
    fc.assert(
      fc.property(
        fc.bigInt({ min: 1n, max: 20n }),
        fc.bigInt({ min: 1n, max: 21n }),
        fc.bigInt({ min: 1n, max: 20n }),
        fc.constantFrom(own, shared),
        (epoch, minSendEpoch, sessionEpoch, historyPolicy) => {
          const rotationDue = minSendEpoch > epoch ? RotationDueReason.MEMBER_REMOVED : none;
          const state = { epoch, minSendEpoch, rotationDue };
          const verdict = judgeSending(state, [{ fromEpoch: 1n }], { epoch: sessionEpoch, historyPolicy });
          expect(verdict).toBe(sessionEpoch < minSendEpoch ? 'rotation-required' : 'accepted');
        },
      ),
    );
  });

  it('under the current session waits for the rotation when none was made for the sender yet', () => {
    const state = {
      epoch: 3n,
      minSendEpoch: 1n,
      rotationDue: RotationDueReason.MEMBER_ADDED,
    };
    const under = (epoch: bigint) => judgeSending(state, [{ fromEpoch: 4n }], { epoch, historyPolicy: own });
    expect([under(3n), under(2n)]).toEqual(['rotation-required', 'not-entitled']);
  });
});

describe('the reason of a rotation', () => {
  it('is never replaced by one that weighs less', () => {
    const { REQUESTED, MEMBER_ADDED, DEVICE_REVOKED, MEMBER_REMOVED } = RotationDueReason;
    expect(rotationDueAfter(none, 'requested', own)).toBe(REQUESTED);
    expect(rotationDueAfter(REQUESTED, 'added', own)).toBe(MEMBER_ADDED);
    expect(rotationDueAfter(REQUESTED, 'added', shared)).toBe(REQUESTED);
    expect(rotationDueAfter(none, 'added', shared)).toBe(none);
    for (const change of ['requested', 'added', 'removed'] as const)
      expect(rotationDueAfter(MEMBER_REMOVED, change, own)).toBe(MEMBER_REMOVED);
    expect(rotationDueAfter(MEMBER_ADDED, 'requested', own)).toBe(MEMBER_ADDED);
    for (const change of ['requested', 'added'] as const)
      expect(rotationDueAfter(DEVICE_REVOKED, change, own)).toBe(DEVICE_REVOKED);
    expect(rotationDueAfter(DEVICE_REVOKED, 'removed', own)).toBe(MEMBER_REMOVED);
  });
});

describe('entitlement where the policy changed', () => {
  const policies = [
    { fromEpoch: 1n, policy: own },
    { fromEpoch: 4n, policy: shared },
    { fromEpoch: 7n, policy: own },
  ];
  it('is to the epochs of the own spans and to those whose own headers share history, and no other', () => {
    expect(readableEpochs([{ fromEpoch: 9n }], policies)).toEqual([{ first: 4n, last: 6n }, { first: 9n }]);
    expect(readableEpochs([{ fromEpoch: 2n, toEpoch: 5n }], policies)).toEqual([{ first: 2n, last: 5n }]);
    expect(readableEpochs([{ fromEpoch: 2n, toEpoch: 2n }], policies)).toEqual([{ first: 2n, last: 2n }]);
  });

  it('is to an epoch just when it is so under that epoch’s policy, in ranges that are apart', () => {
    fc.assert(
      fc.property(
        histories,
        fc.array(fc.constantFrom(own, shared), { minLength: 1, maxLength: 45 }),
        (events, each) => {
          const { epoch, spans } = live(events, own);
          const starts = each.map((policy, i) => ({ fromEpoch: BigInt(i + 1), policy }));
          const ranges = readableEpochs(spans, starts);
          for (const asked of epochsUpTo(epoch)) {
            const policy = each[Math.min(Number(asked), each.length) - 1] ?? own;
            const within = ranges.filter(({ first, last }) => asked >= first && (last === undefined || asked <= last));
            expect(within.length).toBe(isEntitled(spans, policy, asked) ? 1 : 0);
          }
        },
      ),
    );
  });
});

describe('roles', () => {
  const { ADMIN, MEMBER } = MemberRole;
  const admins = { addMembers: ADMIN, removeMembers: ADMIN, changePolicy: ADMIN };
  const everybody = { addMembers: MEMBER, removeMembers: MEMBER, changePolicy: MEMBER };
  it('let members do what the permissions say, and never what makes or unmakes an admin', () => {
    const [a, m] = [[{ userId: 'x', role: ADMIN }], [{ userId: 'x', role: MEMBER }]];
    expect([mayAdd(MEMBER, admins, m), mayAdd(MEMBER, everybody, m), mayAdd(MEMBER, everybody, a)]).toEqual([
      false,
      true,
      false,
    ]);
    expect([mayAdd(ADMIN, admins, a), mayRemove(ADMIN, admins, [ADMIN])]).toEqual([true, true]);
    expect([mayRemove(MEMBER, admins, [MEMBER]), mayRemove(MEMBER, everybody, [MEMBER, ADMIN])]).toEqual([
      false,
      false,
    ]);
    expect(mayRemove(MEMBER, everybody, [MEMBER])).toBe(true);
    expect([mayChangePolicy(MEMBER, admins), mayChangePolicy(MEMBER, everybody)]).toEqual([false, true]);
  });

  it('tell who became an admin because the last one left', () => {
    const before = [
      { userId: 'a', role: ADMIN },
      { userId: 'b', role: MEMBER },
    ];
    expect(promotedIn(before, [{ userId: 'b', role: ADMIN }])?.userId).toBe('b');
    expect(promotedIn(before, before)).toBeUndefined();
  });
});

describe('completeness', () => {
  const device = fc.record({ userId: fc.constantFrom('a', 'b', 'c'), deviceId: fc.constantFrom('1', '2', '3') });
  it('holds exactly when each active device is named once and all lists are pinned as they are', () => {
    fc.assert(
      fc.property(fc.array(device, { maxLength: 8 }), fc.array(device, { maxLength: 3 }), (sealed, withheld) => {
        const roster = [
          { userId: 'a', version: 2n, deviceIds: ['1', '2'] },
          { userId: 'b', version: 1n, deviceIds: ['1'] },
          { userId: 'c', version: 0n, deviceIds: [] },
        ];
        const session = {
          envelopes: sealed.map((recipient) => ({ recipient })),
          withholdings: withheld.map((withheldFrom) => ({ device: withheldFrom })),
        } as unknown as Parameters<typeof incompletenessOf>[0];
        const pins = roster.map(({ userId, version }) => ({ userId, version })) as unknown as Parameters<
          typeof incompletenessOf
        >[1];
        const named = [...sealed, ...withheld].map(({ userId, deviceId }) => `${userId}${deviceId}`);
        const complete = named.length === 3 && ['a1', 'a2', 'b1'].every((each) => named.includes(each));
        expect(incompletenessOf(session, pins, roster) === undefined).toBe(complete);
        const moved = roster.map((list) => ({ ...list, version: list.version + 1n }));
        expect(incompletenessOf(session, pins, moved)?.staleDeviceLists).toHaveLength(3);
      }),
    );
  });
});

describe('a new roster', () => {
  it('needs its creator as admin, each user once, and two for a direct conversation', () => {
    const admin = { userId: 'a', role: MemberRole.ADMIN };
    const b = { userId: 'b', role: MemberRole.MEMBER };
    expect(problemOfNewRoster(ConversationKind.DIRECT, [admin, b], 'a')).toBeUndefined();
    expect(problemOfNewRoster(ConversationKind.DIRECT, [admin], 'a')?.field).toBe('members');
    expect(problemOfNewRoster(ConversationKind.GROUP, [admin, b, b], 'a')?.field).toBe('members[2].user_id');
    expect(problemOfNewRoster(ConversationKind.GROUP, [admin, b], 'b')?.field).toBe('members[1].role');
    expect(problemOfNewRoster(ConversationKind.GROUP, [admin, b], 'c')?.field).toBe('members');
  });
});

it('fills a page up to its bounds, and with one item at least', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(10)), fc.integer({ min: 1, max: 5 }), fc.nat(20), (items, limit, most) => {
      const page = takeWhileFits(items, limit, (item) => item, most);
      expect(page).toEqual(items.slice(0, page.length));
      expect(page.length).toBeLessThanOrEqual(limit);
      if (items.length > 0) expect(page.length).toBeGreaterThan(0);
      if (page.length > 1) expect(page.reduce((sum, item) => sum + item, 0)).toBeLessThanOrEqual(most);
    }),
  );
});
