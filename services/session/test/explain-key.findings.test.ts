import { MissCause, Recovery, Remedy } from '@keytrail/contracts';
import { describe, expect, it } from 'vitest';
import { explainKey } from '../src/domain/explain-key.ts';
import type { FindingCode } from '../src/domain/findings.ts';
import type { ConversationRecord, KeyFacts, PresenceRecord, RequestFacts } from '../src/domain/key-facts.ts';

const at = (minute: number) => new Date(minute * 60_000);
const alice = { userId: 'alice', deviceId: 'phone' };
const bob = { userId: 'bob', deviceId: 'phone' };
const before = '20261101000000_sessions';
const since = '20261125020000_writer_schema';
const later = '20261130000000_later';

const session: NonNullable<KeyFacts['session']> = {
  imported: false,
  epoch: 1n,
  initiator: alice,
  hasEphemeralKey: true,
  hasIdentityKey: true,
  hasHeader: true,
  envelopesExpected: 3,
  envelopesPresent: 3,
  envelopesErased: 0,
  withheldReason: undefined,
  writerBuild: '1.0.0+a',
  writerSchema: later,
  traceId: '',
  createdAt: at(10),
};
const conversation: ConversationRecord = {
  type: 'GROUP',
  currentEpoch: 1n,
  currentSessionId: 'session',
  rotationDueReason: '',
  rotationDueSince: undefined,
  createdAt: at(1),
  traceId: '',
  writerBuild: '1.0.0+a',
  memberships: [],
  epochs: [{ epoch: 1n, sessionId: 'session', committedAt: at(10), traceId: '', writerBuild: '1.0.0+a' }],
  epochGaps: [],
  standing: { standing: 'committed', decidedAt: at(10), beganAt: at(9), traceId: '', writerBuild: '1.0.0+a' },
} as unknown as ConversationRecord;
const gateway = { gatewayId: 'one', alive: true, entries: 1, isOwn: true, streams: 1, streamsWithoutEntry: 0 };
const presence: PresenceRecord = {
  storeReachable: true,
  gateways: [gateway],
  attached: undefined,
} as unknown as PresenceRecord;
const request = {
  keyRequestId: 'request',
  kind: 'MISSING',
  state: 'WAITING_FOR_HOLDER',
  requestedAt: at(20),
  expiresAt: at(90),
  traceId: '',
  writerBuild: '1.0.0+a',
  offers: [],
} as unknown as RequestFacts;
const offer = { holder: alice, attempt: 1, offeredAt: at(20), lapsesAt: at(40), declinedBecause: '' };

/** A device that came later, in a fleet in which all is sound. */
const facts = {
  conversationId: 'c',
  sessionId: 'session',
  reader: bob,
  now: at(30),
  runningBuild: '1.0.0+a',
  readable: false,
  miss: {
    kind: 'miss',
    cause: MissCause.DEVICE_ADDED_AFTER_SESSION,
    recovery: Recovery.REQUESTABLE,
    remedy: Remedy.NONE,
    evidence: {},
    keyRequestId: '',
    retryAfterMs: 0,
  },
  session,
  discardedAt: undefined,
  migrations: [
    { name: before, appliedAt: at(1) },
    { name: since, appliedAt: at(2) },
    { name: later, appliedAt: at(3) },
  ],
  writers: [],
  envelopes: [],
  requests: [request],
  locallyRevokedAt: undefined,
  conversation: { known: true, value: conversation },
  devices: { known: true, value: [] },
  holders: { known: true, value: { eligible: 1, online: 0 } },
  presence: { known: true, value: presence },
} as unknown as KeyFacts;

const codes = (change: object = {}): FindingCode[] => explainKey({ ...facts, ...change }).map(({ code }) => code);
const ofSession = (change: object) => ({ session: { ...session, ...change } });
const ofConversation = (change: object) => ({
  conversation: { known: true, value: { ...conversation, ...change } },
});
const ofPresence = (change: object) => ({ presence: { known: true, value: { ...presence, ...change } } });
const ofRequest = (change: object) => ({ requests: [{ ...request, ...change }] });
const explains = (code: FindingCode, change: object): boolean | undefined =>
  explainKey({ ...facts, ...change }).find((finding) => finding.code === code)?.explainsMiss;
const enveloped = { ...facts.miss, cause: MissCause.ENVELOPE_MISSING };

it('of a sound fleet nothing is told but the cause and what keeps its cure away', () => {
  expect(codes()).toEqual(['DEVICE_ADDED_AFTER_SESSION', 'NO_HOLDER_ONLINE']);
});

describe('WRITTEN_BY_OLD_BUILD', () => {
  it.each<[what: string, change: object, found: boolean]>([
    ['knew all that its database had', {}, false],
    ['knew less', { writerSchema: since }, true],
    ['said nothing, when its database asked for it', { writerSchema: undefined }, true],
    ['said nothing, and was imported', { writerSchema: undefined, imported: true }, false],
    ['said nothing, before any could say it', { writerSchema: undefined, createdAt: at(1) }, false],
    ['knew all at the very time of a migration', { writerSchema: since, createdAt: at(3) }, true],
    ['knew all that its database had then, and not what came later', { writerSchema: since, createdAt: at(2) }, false],
  ])('of a writer that %s', (_, change, found) => {
    expect(codes(ofSession(change)).includes('WRITTEN_BY_OLD_BUILD')).toBe(found);
  });

  it('explains the miss when what it left out is what the device lacks, and not otherwise', () => {
    const old = (change: object) => ofSession({ writerSchema: since, ...change });
    expect(explains('WRITTEN_BY_OLD_BUILD', old({}))).toBe(false);
    expect(explains('WRITTEN_BY_OLD_BUILD', old({ hasEphemeralKey: false }))).toBe(true);
    const gone = old({ envelopesPresent: 2 });
    expect(explains('WRITTEN_BY_OLD_BUILD', gone)).toBe(false);
    expect(explains('WRITTEN_BY_OLD_BUILD', { ...gone, miss: enveloped })).toBe(true);
  });
});

describe('EPOCH_LOST', () => {
  it.each<[what: string, change: object, told: boolean | undefined]>([
    ['has all of its epochs', {}, undefined],
    ['lacks one that is not this one', { epochGaps: [2n] }, false],
    ['lacks the row of the epoch that it is in', { currentEpoch: 0n }, false],
    ['lacks that of this session', { standing: { ...conversation.standing, standing: 'lost' } }, true],
    ['never began', { type: '', currentEpoch: 0n }, undefined],
  ])('of a conversation that %s', (_, change, told) => {
    expect(explains('EPOCH_LOST', ofConversation(change))).toBe(told);
  });
});

it('envelopes of users who were erased are not missing', () => {
  expect(codes(ofSession({ envelopesPresent: 2, envelopesErased: 1 }))).not.toContain('ENVELOPES_FEWER_THAN_EXPECTED');
  expect(codes(ofSession({ envelopesPresent: 2 }))).toContain('ENVELOPES_FEWER_THAN_EXPECTED');
});

it('envelopes that are gone explain the miss of the device whose they were', () => {
  const gone = ofSession({ envelopesPresent: 2 });
  expect(explains('ENVELOPES_FEWER_THAN_EXPECTED', { ...gone, miss: enveloped })).toBe(true);
  expect(explains('ENVELOPES_FEWER_THAN_EXPECTED', gone)).toBe(false);
});

describe('a row that lacks', () => {
  it.each<[what: string, change: object, code: FindingCode]>([
    ['the ephemeral key', { hasEphemeralKey: false }, 'INITIATOR_EPHEMERAL_MISSING'],
    ['the identity key', { hasIdentityKey: false }, 'INITIATOR_IDENTITY_MISSING'],
    ['the header', { hasHeader: false }, 'SESSION_DAMAGED'],
  ])('%s explains the miss of who has a right to the key, and of nobody else', (_, change, code) => {
    const damaged = ofSession(change);
    expect(explains(code, damaged)).toBe(true);
    expect(codes(damaged)[0]).toBe(code);
    expect(explains(code, { ...damaged, readable: true, miss: undefined })).toBe(false);
    expect(explains(code, { ...damaged, miss: { ...facts.miss, cause: MissCause.DEVICE_REVOKED } })).toBe(false);
  });
});

describe('CONVERSATION_WITHOUT_SESSION', () => {
  const gone = { session: undefined, miss: { ...facts.miss, cause: MissCause.SESSION_UNKNOWN } };
  const [epoch] = conversation.epochs;
  const ofAnother = { epochs: [{ ...epoch, sessionId: 'another' }] };
  it.each<[what: string, change: object, told: boolean | undefined]>([
    ['is committed, with its epoch', {}, true],
    ['is committed, and its epoch is not among those that are told', { epochs: [] }, true],
    ['is an epoch, of which nothing else is known', { standing: undefined }, true],
    ['is unknown there, too', { standing: undefined, ...ofAnother }, undefined],
    ['is a candidate', { standing: { ...conversation.standing, standing: 'candidate' }, ...ofAnother }, undefined],
  ])('of rows that are gone, of a session that %s', (_, change, told) => {
    expect(explains('CONVERSATION_WITHOUT_SESSION', { ...gone, ...ofConversation(change) })).toBe(told);
  });

  it('is not said of a session whose rows are there, nor when nobody knows the conversation', () => {
    expect(codes()).not.toContain('CONVERSATION_WITHOUT_SESSION');
    expect(codes({ ...gone, conversation: { known: true, value: undefined } })).not.toContain(
      'CONVERSATION_WITHOUT_SESSION',
    );
  });
});

it('a session whose rows are gone is told as that: that it is unknown is what clients hear of it', () => {
  const gone = { session: undefined, miss: { ...facts.miss, cause: MissCause.SESSION_UNKNOWN } };
  expect(explains('SESSION_UNKNOWN', gone)).toBe(false);
  const another = { standing: undefined, epochs: [] };
  expect(explains('SESSION_UNKNOWN', { ...gone, ...ofConversation(another) })).toBe(true);
});

it('a cause that the silent peer has no part in is told, with what cannot be said', () => {
  const miss = { kind: 'incomplete', peer: 'presence' };
  const decided = { cause: MissCause.DEVICE_ADDED_AFTER_SESSION, evidence: {} };
  const away = { miss, holders: { known: false, peer: 'presence' }, presence: { known: false, peer: 'presence' } };
  expect(codes({ ...away, decided })).toEqual(['DEVICE_ADDED_AFTER_SESSION', 'EXPLANATION_INCOMPLETE']);
  expect(codes(away)).toEqual(['EXPLANATION_INCOMPLETE']);
});

describe('PRESENCE_LOST', () => {
  const dead = { ...gateway, gatewayId: 'two', alive: false, isOwn: false };
  const attached = { ...alice, gatewayId: 'two', online: false };
  it.each<[what: string, change: object, found: boolean]>([
    ['all is known of', {}, false],
    ['has no store', { storeReachable: false }, true],
    ['has streams without an entry', { gateways: [{ ...gateway, streamsWithoutEntry: 1 }] }, true],
    ['answers by a gateway without a lease', { gateways: [{ ...gateway, alive: false }] }, true],
    ['has another gateway that is gone, and nobody at it', { gateways: [gateway, dead] }, false],
    ['has a holder at one that is gone', { gateways: [gateway, dead], attached: [attached] }, true],
    ['has a holder who is online', { gateways: [gateway], attached: [{ ...attached, gatewayId: 'one' }] }, false],
    ['lost its entries a moment ago', { gateways: [{ ...gateway, lastLossAt: at(29.5) }] }, true],
    [
      'lost them since it was asked, and has had the time to heal',
      { gateways: [{ ...gateway, lastLossAt: at(20) }] },
      false,
    ],
  ])('of a presence that %s', (_, change, found) => {
    expect(codes(ofPresence(change)).includes('PRESENCE_LOST')).toBe(found);
  });

  it('is not told of a request that was made after the loss', () => {
    const lost = ofPresence({ gateways: [{ ...gateway, lastLossAt: at(29.5) }] });
    expect(codes({ ...lost, ...ofRequest({ requestedAt: at(29.6) }) })).not.toContain('PRESENCE_LOST');
  });

  it('explains the miss only of a request that waits for nothing else', () => {
    const lost = ofPresence({ gateways: [{ ...gateway, streamsWithoutEntry: 1 }] });
    expect(explains('PRESENCE_LOST', lost)).toBe(true);
    expect(explains('PRESENCE_LOST', { ...lost, holders: { known: true, value: { eligible: 2, online: 1 } } })).toBe(
      false,
    );
    expect(explains('PRESENCE_LOST', { ...lost, ...ofRequest({ queuedAt: at(21) }) })).toBe(false);
    expect(explains('PRESENCE_LOST', { ...lost, ...ofRequest({ state: 'OFFERED' }) })).toBe(false);
    expect(explains('PRESENCE_LOST', { ...lost, requests: [] })).toBe(false);
  });
});

describe('a request', () => {
  const holders = (eligible: number, online: number) => ({ holders: { known: true, value: { eligible, online } } });
  it.each<[what: string, change: object, told: readonly FindingCode[]]>([
    ['that nobody made', { requests: [] }, ['NEVER_REQUESTED']],
    ['that nobody made, of a key that nobody has', { requests: [], ...holders(0, 0) }, ['NO_HOLDER_EXISTS']],
    ['that waits for a holder', {}, ['NO_HOLDER_ONLINE']],
    ['that waits while one is online', holders(2, 1), ['REQUEST_WAITING']],
    ['that waits for its turn', { ...ofRequest({ queuedAt: at(21) }), ...holders(2, 1) }, ['REQUEST_WAITING']],
    ['that is offered', ofRequest({ state: 'OFFERED', offers: [offer] }), ['REQUEST_OFFERED']],
    [
      'whose offer lapsed this moment',
      ofRequest({ state: 'OFFERED', offers: [{ ...offer, lapsesAt: at(30) }] }),
      ['NO_HOLDER_ONLINE', 'HOLDERS_SILENT'],
    ],
    [
      'whose offer was declined',
      ofRequest({ offers: [{ ...offer, declinedAt: at(25), declinedBecause: 'NOT_TRUSTED' }] }),
      ['HOLDERS_DECLINE', 'NO_HOLDER_ONLINE'],
    ],
    ['that ran out', ofRequest({ state: 'EXPIRED' }), ['REQUEST_EXPIRED']],
    ['that was given up', ofRequest({ state: 'UNFULFILLABLE' }), ['REQUEST_GIVEN_UP']],
  ])('%s', (_, change, told) => {
    expect(codes(change)).toEqual(['DEVICE_ADDED_AFTER_SESSION', ...told]);
  });
});

describe('what is worth knowing besides', () => {
  const device = {
    ...bob,
    registeredAt: at(15),
    keysMissing: [],
    oneTimePrekeys: 1,
    oneTimeKemPrekeys: 1,
    traceId: '',
    writerBuild: '1.0.0+a',
  };
  const ofDevice = (change: object) => ({ devices: { known: true, value: [{ ...device, ...change }] } });
  const writer = (build: string, firstAt: number, lastAt: number) => ({
    build,
    firstAt: at(firstAt),
    lastAt: at(lastAt),
  });
  it.each<[what: string, change: object, told: readonly FindingCode[]]>([
    ['a device with all of its keys', ofDevice({}), []],
    ['one that lacks a key', ofDevice({ keysMissing: ['identity_key'] }), ['DEVICE_INCOMPLETE']],
    ['one without prekeys', ofDevice({ oneTimePrekeys: 0 }), ['PREKEYS_EXHAUSTED']],
    ['one without those of the other kind', ofDevice({ oneTimeKemPrekeys: 0 }), ['PREKEYS_EXHAUSTED']],
    ['one without prekeys that is revoked', ofDevice({ oneTimePrekeys: 0, revokedAt: at(16) }), []],
    ['builds that wrote one after the other', { writers: [writer('a', 1, 2), writer('b', 3, 4)] }, []],
    ['builds that wrote by turns', { writers: [writer('a', 1, 3), writer('b', 3, 4)] }, ['FLEET_MIXED']],
    ['a rotation that is due', ofConversation({ rotationDueReason: 'MEMBER_REMOVED' }), ['ROTATION_DUE']],
  ])('of %s', (_, change, told) => {
    expect(codes(change)).toEqual(['DEVICE_ADDED_AFTER_SESSION', 'NO_HOLDER_ONLINE', ...told]);
  });
});
