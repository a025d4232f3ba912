import { HistoryPolicy, MissCause, Recovery } from '@keytrail/contracts';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Answer, explainMiss, type MissFacts, mayRequestKey, type PeerName } from '../src/domain/explain-miss.ts';

const hints = { offeredRetryMs: 5_000, waitingRetryMs: 30_000 };
const epochs = fc.bigInt({ min: 1n, max: 4n });
const dates = fc.date({ min: new Date(0), max: new Date(4e12), noInvalidDate: true });

function answered<T>(value: fc.Arbitrary<T>, peer: PeerName): fc.Arbitrary<Answer<T>> {
  return fc.oneof(
    { weight: 4, arbitrary: value.map((known) => ({ known: true, value: known }) as const) },
    { weight: 1, arbitrary: fc.constant({ known: false, peer } as const) },
  );
}

const memberships = fc.array(fc.record({ fromEpoch: epochs, toEpoch: fc.oneof(fc.constant(0n), epochs) }), {
  maxLength: 3,
});
const entitlement = fc.record({
  conversationKnown: fc.boolean(),
  sessionCommitted: fc.boolean(),
  epoch: epochs,
  currentEpoch: epochs,
  currentSessionId: fc.constant('current'),
  historyPolicy: fc.constantFrom(HistoryPolicy.OWN_MEMBERSHIP, HistoryPolicy.SHARED),
  everMember: fc.boolean(),
  memberNow: fc.boolean(),
  entitled: fc.boolean(),
  memberships,
});
const registration = fc.oneof(
  fc.constant({ registered: false } as const),
  fc.record({
    registered: fc.constant(true as const),
    addedInVersion: epochs,
    addedAt: dates,
    revokedAt: fc.option(dates, { nil: undefined }),
  }),
);
const stored = fc.record({
  imported: fc.boolean(),
  epoch: epochs,
  initiator: fc.constant({ userId: 'alice', deviceId: 'phone' }),
  hasEphemeralKey: fc.boolean(),
  hasIdentityKey: fc.boolean(),
  envelopesPresent: fc.nat(3),
  envelopesExpected: fc.nat(3),
  writerBuild: fc.constant('0.1.0+abc'),
  createdAt: dates,
  pinnedVersion: fc.option(epochs, { nil: undefined }),
  hasHeader: fc.boolean(),
  withheldReason: fc.option(fc.constant('UNCERTIFIED'), { nil: undefined }),
});
const anyFacts: fc.Arbitrary<MissFacts> = fc.record({
  conversationId: fc.uuid(),
  sessionId: fc.constant('session'),
  device: fc.constant({ userId: 'bob', deviceId: 'laptop' }),
  stored: fc.option(stored, { nil: undefined }),
  locallyRevokedAt: fc.option(dates, { nil: undefined }),
  openRequest: fc.option(
    fc.record({ keyRequestId: fc.uuid(), state: fc.constantFrom('WAITING_FOR_HOLDER' as const, 'OFFERED' as const) }),
    { nil: undefined },
  ),
  entitlement: answered(entitlement, 'conversation'),
  registration: answered(registration, 'identity-keys'),
  holders: answered(fc.record({ eligible: fc.nat(3), online: fc.nat(3) }), 'presence'),
});

/** The precedence of docs/reasons/README.md, each rule on its own: which causes may be told of facts at all. */
function admits(facts: MissFacts, cause: MissCause): boolean {
  const [rights, device, session] = [facts.entitlement, facts.registration, facts.stored];
  if (!rights.known) return false;
  const stranger = !rights.value.conversationKnown || !rights.value.everMember;
  const unknown = !rights.value.sessionCommitted || session === undefined;
  const revoked =
    facts.locallyRevokedAt !== undefined ||
    (device.known && device.value.registered && device.value.revokedAt !== undefined);
  switch (cause) {
    case MissCause.NOT_FOUND_OR_NOT_PERMITTED:
      return stranger;
    case MissCause.SESSION_UNKNOWN:
      return !stranger && unknown;
    case MissCause.NOT_A_MEMBER_AT_EPOCH:
    case MissCause.HISTORY_NOT_SHARED:
      return !stranger && !unknown && !rights.value.entitled;
    case MissCause.DEVICE_REVOKED:
      return !stranger && !unknown && rights.value.entitled && revoked;
    case MissCause.DEVICE_UNKNOWN:
      return !stranger && !unknown && rights.value.entitled && device.known && !device.value.registered;
    default:
      return !stranger && !unknown && rights.value.entitled && !revoked && device.known && device.value.registered;
  }
}

describe('explaining a miss', () => {
  it('ends in a cause that the facts admit, or in the peer that was away', () => {
    fc.assert(
      fc.property(anyFacts, (facts) => {
        const told = explainMiss(facts, hints);
        if (told.kind === 'incomplete') {
          const away = [facts.entitlement, facts.registration, facts.holders].flatMap((answer) =>
            answer.known ? [] : [answer.peer],
          );
          expect(away).toContain(told.peer);
        } else {
          expect(told.cause).not.toBe(MissCause.UNSPECIFIED);
          expect(told.recovery).not.toBe(Recovery.UNSPECIFIED);
          expect(told.remedy).not.toBe(0);
          expect(admits(facts, told.cause)).toBe(true);
        }
      }),
      { numRuns: 5_000 },
    );
  });

  it('always has a cause when all peers answered', () => {
    fc.assert(
      fc.property(anyFacts, (facts) => {
        fc.pre(facts.entitlement.known && facts.registration.known && facts.holders.known);
        expect(explainMiss(facts, hints).kind).toBe('miss');
      }),
    );
  });

  it('tells every stranger the same, whatever else is true', () => {
    fc.assert(
      fc.property(anyFacts, anyFacts, (one, other) => {
        const told = [one, other].map((facts) => {
          if (!facts.entitlement.known) return undefined;
          const value = { ...facts.entitlement.value, everMember: false };
          return explainMiss({ ...facts, entitlement: { known: true, value } }, hints);
        });
        fc.pre(told.every((answer) => answer !== undefined));
        expect(told[0]).toEqual(told[1]);
        expect(told[0]).toMatchObject({ evidence: {}, keyRequestId: '' });
      }),
    );
  });

  it('does not change its answer when a peer that it needed no answer from goes away', () => {
    fc.assert(
      fc.property(anyFacts, fc.constantFrom('registration' as const, 'holders' as const), (facts, away) => {
        const peer = away === 'registration' ? 'identity-keys' : 'presence';
        const with_ = explainMiss(facts, hints);
        const without = explainMiss({ ...facts, [away]: { known: false, peer } }, hints);
        if (without.kind === 'miss') expect(without).toEqual(with_);
      }),
    );
  });

  it('offers a request only to those who may have the key', () => {
    fc.assert(
      fc.property(anyFacts, (facts) => {
        const told = explainMiss(facts, hints);
        if (told.kind === 'miss' && told.recovery === Recovery.REQUESTABLE)
          expect(mayRequestKey(told.cause)).toBe(true);
        if (told.kind === 'miss' && !mayRequestKey(told.cause)) expect(told.keyRequestId).toBe('');
      }),
    );
  });
});
