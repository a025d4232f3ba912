import { MissCause, missCauseName, Recovery, Remedy } from '@keytrail/contracts';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { explainKey } from '../src/domain/explain-key.ts';
import type { Answer, PeerName } from '../src/domain/explain-miss.ts';
import { type FindingCode, findingCatalogue } from '../src/domain/findings.ts';
import type { ConversationRecord, KeyFacts } from '../src/domain/key-facts.ts';
import { timelineOf } from '../src/domain/key-timeline.ts';

const dates = fc.date({ min: new Date(0), max: new Date(4e12), noInvalidDate: true });
const maybe = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined });
const devices = fc.record({
  userId: fc.constantFrom('alice', 'bob'),
  deviceId: fc.constantFrom('phone', 'laptop'),
});
const builds = fc.constantFrom('1.0.0+aaa', '1.1.0+bbb');
const traceId = fc.constantFrom('', 'a'.repeat(32));

function answered<T>(value: fc.Arbitrary<T>, peer: PeerName): fc.Arbitrary<Answer<T>> {
  return fc.oneof(
    { weight: 4, arbitrary: value.map((known) => ({ known: true, value: known }) as const) },
    { weight: 1, arbitrary: fc.constant({ known: false, peer } as const) },
  );
}

const session = fc.record({
  imported: fc.boolean(),
  epoch: fc.bigInt({ min: 1n, max: 3n }),
  initiator: devices,
  hasEphemeralKey: fc.boolean(),
  hasIdentityKey: fc.boolean(),
  hasHeader: fc.boolean(),
  envelopesExpected: fc.nat(3),
  envelopesPresent: fc.nat(3),
  envelopesErased: fc.nat(1),
  withheldReason: maybe(fc.constant('UNCERTIFIED')),
  writerBuild: builds,
  writerSchema: maybe(fc.constantFrom('20261125020000_writer_schema', '20261130000000_later')),
  traceId,
  createdAt: dates,
});
const envelope = fc.record({
  attempt: fc.nat(3),
  keyRequestId: maybe(fc.constant('request')),
  sealer: devices,
  writtenAt: dates,
  openedAt: maybe(dates),
  rejectedAt: maybe(dates),
  rejectedBecause: maybe(fc.constant('CANNOT_OPEN')),
});
const offer = fc.record({
  holder: devices,
  attempt: fc.nat(3),
  offeredAt: dates,
  lapsesAt: dates,
  declinedAt: maybe(dates),
  declinedBecause: fc.constantFrom('', 'NOT_TRUSTED'),
});
const request = fc.record({
  keyRequestId: fc.constant('request'),
  kind: fc.constant('MISSING'),
  state: fc.constantFrom(
    'WAITING_FOR_HOLDER' as const,
    'OFFERED' as const,
    'FULFILLED' as const,
    'EXPIRED' as const,
    'CANCELLED' as const,
    'UNFULFILLABLE' as const,
  ),
  requestedAt: dates,
  queuedAt: maybe(dates),
  holderWantedAt: maybe(dates),
  expiresAt: dates,
  endedAt: maybe(dates),
  endedBecause: maybe(fc.constant('expired' as const)),
  acceptedAttempt: maybe(fc.nat(3)),
  traceId,
  writerBuild: builds,
  offers: fc.array(offer, { maxLength: 3 }),
});
const conversation: fc.Arbitrary<ConversationRecord> = fc.record({
  type: fc.constantFrom('', 'GROUP'),
  currentEpoch: fc.bigInt({ min: 0n, max: 3n }),
  currentSessionId: fc.constantFrom('', 'session'),
  rotationDueReason: fc.constantFrom('', 'AGE'),
  rotationDueSince: maybe(dates),
  rotationDueTraceId: traceId,
  rotationDueWriterBuild: builds,
  createdAt: maybe(dates),
  traceId,
  writerBuild: builds,
  memberships: fc.array(
    fc.record({
      role: fc.constant('MEMBER'),
      joinedEpoch: fc.bigInt({ min: 1n, max: 3n }),
      leftEpoch: fc.bigInt({ min: 0n, max: 3n }),
      joinedAt: maybe(dates),
      leftAt: maybe(dates),
      traceId,
      writerBuild: builds,
      leftTraceId: traceId,
      leftWriterBuild: builds,
    }),
    { maxLength: 2 },
  ),
  epochs: fc.array(
    fc.record({
      epoch: fc.bigInt({ min: 1n, max: 3n }),
      sessionId: fc.constantFrom('session', 'another'),
      committedAt: maybe(dates),
      traceId,
      writerBuild: builds,
    }),
    { maxLength: 3 },
  ),
  epochGaps: fc.array(fc.constant(1n), { maxLength: 1 }),
  standing: maybe(
    fc.record({
      standing: fc.constantFrom('committed', 'candidate', 'aborted', 'lost'),
      decidedAt: maybe(dates),
      beganAt: maybe(dates),
      traceId,
      writerBuild: builds,
    }),
  ),
});
const miss = fc.oneof(
  fc.record({
    kind: fc.constant('miss' as const),
    cause: fc.constantFrom(
      ...(Object.values(MissCause).filter((cause) => typeof cause === 'number' && cause > 0) as MissCause[]),
    ),
    recovery: fc.constant(Recovery.REQUESTABLE),
    remedy: fc.constant(Remedy.NONE),
    evidence: fc.constant({ conversation_id: 'c', session_id: 'session' }),
    keyRequestId: fc.constant(''),
    retryAfterMs: fc.constant(0),
  }),
  fc.record({
    kind: fc.constant('incomplete' as const),
    peer: fc.constantFrom('conversation' as const, 'presence' as const),
  }),
);
const presence = fc.record({
  storeReachable: fc.boolean(),
  gateways: fc.array(
    fc.record({
      gatewayId: fc.constantFrom('one', 'two'),
      alive: fc.boolean(),
      entries: fc.nat(3),
      isOwn: fc.boolean(),
      streams: fc.nat(3),
      streamsWithoutEntry: fc.nat(2),
      lastLossAt: maybe(dates),
    }),
    { maxLength: 2 },
  ),
  attached: maybe(
    fc.array(
      fc.record({
        userId: fc.constantFrom('alice', 'bob'),
        deviceId: fc.constant('phone'),
        gatewayId: fc.constantFrom('one', 'two'),
        online: fc.boolean(),
      }),
      { maxLength: 2 },
    ),
  ),
});
const device = fc.record({
  userId: fc.constantFrom('alice', 'bob'),
  deviceId: fc.constantFrom('phone', 'laptop'),
  registeredAt: maybe(dates),
  revokedAt: maybe(dates),
  keysMissing: fc.array(fc.constant('identity_key'), { maxLength: 1 }),
  oneTimePrekeys: fc.nat(1),
  oneTimeKemPrekeys: fc.nat(1),
  traceId,
  writerBuild: builds,
  revocationTraceId: traceId,
  revocationWriterBuild: builds,
});
const anyFacts: fc.Arbitrary<KeyFacts> = fc
  .record({
    conversationId: fc.constant('c'),
    sessionId: fc.constant('session'),
    reader: fc.constant({ userId: 'bob', deviceId: 'phone' }),
    now: dates,
    runningBuild: builds,
    readable: fc.boolean(),
    miss,
    session: maybe(session),
    decided: maybe(
      fc.record({
        cause: fc.constantFrom(
          MissCause.INITIATOR_EPHEMERAL_MISSING,
          MissCause.KEY_WITHHELD,
          MissCause.DEVICE_ADDED_AFTER_SESSION,
          MissCause.ENVELOPE_MISSING,
        ),
        evidence: fc.constant({ conversation_id: 'c', session_id: 'session' }),
      }),
    ),
    discardedAt: maybe(dates),
    migrations: fc.array(
      fc.record({ name: fc.constantFrom('20261101000000_sessions', '20261125020000_writer_schema'), appliedAt: dates }),
      { maxLength: 2 },
    ),
    writers: fc.array(fc.record({ build: builds, firstAt: dates, lastAt: dates }), { maxLength: 2 }),
    envelopes: fc.array(envelope, { maxLength: 3 }),
    requests: fc.array(request, { maxLength: 2 }),
    locallyRevokedAt: maybe(dates),
    conversation: answered(maybe(conversation), 'conversation'),
    devices: answered(fc.array(device, { maxLength: 3 }), 'identity-keys'),
    holders: answered(fc.record({ eligible: fc.nat(3), online: fc.nat(3) }), 'presence'),
    presence: answered(presence, 'presence'),
  })
  .map((facts) => ({ ...facts, miss: facts.readable ? undefined : facts.miss }))
  .map((facts) => ({ ...facts, decided: facts.miss?.kind === 'incomplete' ? facts.decided : undefined }));

/** What only a peer can know. */
const needs: Readonly<Partial<Record<FindingCode, 'conversation' | 'devices' | 'holders' | 'presence'>>> = {
  CONVERSATION_WITHOUT_SESSION: 'conversation',
  EPOCH_LOST: 'conversation',
  CANDIDATE_NEVER_WON: 'conversation',
  CANDIDATE_UNDECIDED: 'conversation',
  CONVERSATION_UNKNOWN: 'conversation',
  NEVER_A_MEMBER: 'conversation',
  ROTATION_DUE: 'conversation',
  PRESENCE_LOST: 'presence',
  NO_HOLDER_EXISTS: 'holders',
  NO_HOLDER_ONLINE: 'holders',
  DEVICE_INCOMPLETE: 'devices',
  PREKEYS_EXHAUSTED: 'devices',
};

it('any facts, any peer away: never empty, no code twice, what explains first, and nothing that nobody said', () => {
  fc.assert(
    fc.property(anyFacts, (facts) => {
      const findings = explainKey(facts);
      const codes = findings.map(({ code }) => code);
      expect(new Set(codes).size).toBe(codes.length);
      expect(codes.every((code) => findingCatalogue.includes(code))).toBe(true);
      expect(findings.every(({ summary, remedy }) => summary !== '' && remedy !== '')).toBe(true);
      const explains = findings.map(({ explainsMiss }) => explainsMiss);
      expect(explains).toEqual([...explains].sort((a, b) => Number(b) - Number(a)));
      for (const code of codes) {
        const peer = needs[code];
        if (peer) expect(facts[peer].known).toBe(true);
      }
      if (facts.readable) {
        expect(findings.length).toBeGreaterThan(0);
        // Only what the device itself said speaks against a key that is there.
        const isExplained = explains.some(Boolean);
        expect(codes[0]).toBe(isExplained ? codes[0] : 'READABLE');
        if (isExplained) expect(['KEY_REJECTED', 'PRESENCE_LOST']).toContain(codes[0]);
      } else expect(codes).not.toContain('READABLE');
    }),
    { numRuns: 3_000 },
  );
});

it('an unreadable key is explained, or what could not be found out is named', () => {
  fc.assert(
    fc.property(anyFacts, (facts) => {
      if (facts.readable) return;
      const findings = explainKey(facts);
      const isNamed = findings.some(({ explainsMiss, code }) => explainsMiss || code === 'EXPLANATION_INCOMPLETE');
      expect(isNamed).toBe(true);
    }),
    { numRuns: 3_000 },
  );
});

it('a reader without a right is never told that damaged rows are what keeps the key away', () => {
  fc.assert(
    fc.property(anyFacts, (facts) => {
      if (facts.miss?.kind !== 'miss' || facts.miss.cause !== MissCause.NOT_A_MEMBER_AT_EPOCH) return;
      expect(explainKey(facts)[0]?.code).toBe('NOT_A_MEMBER_AT_EPOCH');
    }),
    { numRuns: 3_000 },
  );
});

it('a device that nobody was to seal to is told that, whichever envelopes of others are gone and whoever wrote the row', () => {
  const without = fc.constantFrom(MissCause.DEVICE_ADDED_AFTER_SESSION, MissCause.KEY_WITHHELD);
  const isWhole = { hasEphemeralKey: true, hasIdentityKey: true, hasHeader: true };
  const lacksEnvelopes = { envelopesExpected: 3, envelopesPresent: 1, envelopesErased: 0 };
  fc.assert(
    fc.property(anyFacts, session, without, (facts, row, cause) => {
      if (facts.conversation.known && facts.conversation.value?.standing?.standing === 'lost') return;
      const told = { recovery: Recovery.REQUESTABLE, remedy: Remedy.NONE, keyRequestId: '', retryAfterMs: 0 };
      const findings = explainKey({
        ...facts,
        readable: false,
        envelopes: [],
        session: { ...row, ...isWhole, ...lacksEnvelopes },
        miss: { kind: 'miss', cause, evidence: {}, ...told },
      });
      // A request of it may wait for nothing but presence.
      const [first] = findings.filter(({ code }) => code !== 'PRESENCE_LOST');
      expect(first?.code).toBe(missCauseName(cause));
      const fewer = findings.find(({ code }) => code === 'ENVELOPES_FEWER_THAN_EXPECTED');
      expect(fewer).toMatchObject({ explainsMiss: false, evidence: { envelope_of_this_device: 'not expected' } });
    }),
    { numRuns: 1_000 },
  );
});

it('the timeline is in order, and has no event without a time', () => {
  fc.assert(
    fc.property(anyFacts, (facts) => {
      const times = timelineOf(facts).map(({ happenedAt }) => happenedAt.getTime());
      expect(times).toEqual([...times].sort((a, b) => a - b));
      expect(times.every(Number.isFinite)).toBe(true);
    }),
    { numRuns: 1_000 },
  );
});
