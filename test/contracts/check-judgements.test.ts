import { create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { DescribeProcessResponseSchema } from '@keytrail/contracts';
import type { CheckCode, DatabaseCheck, Outcome, Status } from '@keytrail/diagnosis';
import { checkCatalogue, databaseAnswers, databaseRestored } from '@keytrail/diagnosis';
import { buildIdentity, DatabaseAway } from '@keytrail/telemetry';
import { describe, expect, it, test } from 'vitest';
import type { Environment } from '../../packages/cli/src/connection.ts';
import { worstOf } from '../../packages/cli/src/doctor/finding.ts';
import { judgeContracts, judgeMixed } from '../../packages/cli/src/doctor/fleet/builds.ts';
import { judgeClocks as judgeClocksOfFleet } from '../../packages/cli/src/doctor/fleet/clocks.ts';
import { judgeReachable } from '../../packages/cli/src/doctor/fleet/reachable.ts';
import { judgeOldWriters } from '../../packages/cli/src/doctor/fleet/writers.ts';
import type { Asked } from '../../packages/cli/src/doctor/processes.ts';
import { reproduce } from '../../packages/cli/src/doctor/reproduction.ts';
import type { Session } from '../../packages/cli/src/terminal.ts';
import { judgeBuildRunning } from '../../packages/diagnosis/src/probes/build-running.ts';
import { judgeClocks } from '../../packages/diagnosis/src/probes/clocks.ts';
import { judgeConsumers, probeConsumers } from '../../packages/diagnosis/src/probes/consumers.ts';
import { probeDatabaseRestored } from '../../packages/diagnosis/src/probes/database-restored.ts';
import { judgeMigrations, probeMigrations } from '../../packages/diagnosis/src/probes/migrations.ts';
import { probeNats } from '../../packages/diagnosis/src/probes/nats.ts';
import { judgeSourcesOnDisk } from '../../packages/diagnosis/src/probes/sources-on-disk.ts';
import { judgeStreams, probeStreams } from '../../packages/diagnosis/src/probes/streams.ts';
import { judgeTelemetry } from '../../packages/diagnosis/src/probes/telemetry.ts';
import { candidateFailMs, candidateWarnMs } from '../../services/conversation/src/checks/candidates.ts';
import { databaseChecks as ofConversation } from '../../services/conversation/src/checks/index.ts';
import { probeClaimLimitsRedis } from '../../services/identity-keys/src/checks/claim-limits-redis.ts';
import { databaseChecks as ofIdentityKeys } from '../../services/identity-keys/src/checks/index.ts';
import { judgeGhosts, judgeLeases, judgePresence } from '../../services/presence/src/checks/judgements.ts';
import { databaseChecks as ofSession } from '../../services/session/src/checks/index.ts';
import { openWarnMs, overdueFailMs } from '../../services/session/src/checks/oldest-open-request.ts';

type Judged = Outcome | Promise<Outcome>;
type Case = readonly [what: string, status: Status, found: () => Judged];

/** As the check of this service judges the rows of its statement. */
function rows(of: readonly DatabaseCheck[], code: CheckCode, ...found: object[]): Judged {
  const check = of.find((each) => each.code === code);
  if (!check) throw new Error(`the service has no check ${code}`);
  return check.judge(found);
}

/** A process that answered; of the build, and with the contract. */
function process(build: string, contract = 'contract'): Asked {
  const told = { service: 'session', writerBuild: build, contractDigest: contract, startedAt: timestampFromMs(0) };
  const described = create(DescribeProcessResponseSchema, {
    ready: true,
    now: timestampFromMs(600_000),
    process: told,
  });
  return { service: 'session', address: 'ipv4:127.0.0.1:1', described };
}

/** A row by a build that does not run. */
const wroteAt = (ms: number) => `0+b ${new Date(ms).toISOString()}`;

/** The worst place of several, as they are put together. */
function worst(places: readonly Outcome[]): Outcome {
  const status = worstOf(places.map((place) => place.status));
  return places.find((place) => place.status === status) as Outcome;
}

const signal = new AbortController().signal;
const noNats = { isConnected: () => false } as never;
const build = buildIdentity('session');
const fence = {
  incarnation: 'i',
  position: 7n,
  place: 'here',
  here: 'here',
  closed: false,
  restores: 0n,
  because: null,
  noticedAt: null,
  handledAt: null,
};
/** A pool of which every statement gives this row: what a fence adds is judged, not what is read. */
const reading = (row: object) => ({
  pool: { connect: async () => ({ query: async () => ({ rows: [row] }), release: () => {} }) },
});
const fenced = (said: object, row: object = fence) =>
  probeDatabaseRestored(reading(row) as never, said as never).run(signal);
const open = { pass: {}, state: 'open', outsideKnown: true };
const sessionRows = { looked: 9, withoutEphemeral: 0, withoutIdentity: 0, importedWithoutKeys: 0 };
const counts = { looked: 9, envelopesExpected: 4, envelopesPresent: 4, wrong: 0, example: null };
const requests = {
  ...{ open: 1, waiting: 1, offered: 0, oldestMs: 0, oldestId: 'r', oldestState: 'OFFERED' },
  ...{ overdueMs: 0, neverSeenMs: 0 },
};
const pools = { looked: 10, emptyOneTime: 0, emptyKem: 0, low: 0 };
const candidate = { candidates: 1, oldestMs: 0, oldest: 'c/s', writerBuild: '1+a' };
const spans = { exported: 1, failed: 0, overflowed: 0 };
const arrivals = { exporting: true, spans, metrics: {} };
const picture = { attached: 2, compared: 2, lost: 0, gateways: 1 };
const leases = [
  { gatewayId: 'one', endsInMs: 10 },
  { gatewayId: 'two', endsInMs: 0 },
];
const targets = Object.fromEntries(
  ['IDENTITY_KEYS', 'SESSION', 'CONVERSATION', 'PRESENCE'].map((name) => [`KEYTRAIL_${name}_TARGET`, '127.0.0.1:1']),
);
/** Of a command line that gives no targets. */
const session = (environment: Environment) => ({ environment, options: { timeout: 1_000 } }) as Session;
const redis = (answers: boolean) => ({ ping: () => (answers ? Promise.resolve() : Promise.reject(new Error('away'))) });
const claims = (answers: boolean, withoutRedis: 'open' | 'closed', limited = true) =>
  probeClaimLimitsRedis({ redis: redis(answers), limited, withoutRedis }).run(signal);

/** Of every check what it is called sound by, and what not; at the very thresholds. Each has one at least that is not ok. */
const cases: Readonly<Record<CheckCode, readonly Case[]>> = {
  SERVICES_REACHABLE: [
    ['a process that answers', 'ok', () => worst(judgeReachable([process('1+a')], [], []))],
    [
      'one that does not',
      'fail',
      () => worst(judgeReachable([process('1+a'), { ...process(''), described: undefined } as never], [], [])),
    ],
    ['a name that nobody knows', 'fail', () => worst(judgeReachable([], [{ service: 'session', problem: 'x' }], []))],
    ['no target', 'unknown', () => worst(judgeReachable([process('1+a')], [], ['presence']))],
  ],
  BUILD_RUNNING: [
    ['a supervisor', 'ok', () => judgeBuildRunning({ ...build, supervisor: 'systemd' })],
    ['none', 'warn', () => judgeBuildRunning({ ...build, supervisor: 'none' })],
  ],
  SOURCES_ON_DISK: [
    ['the same', 'ok', () => judgeSourcesOnDisk(build, build.sourcesDigest)],
    ['others', 'warn', () => judgeSourcesOnDisk(build, 'other')],
  ],
  FLEET_MIXED: [
    ['one build', 'ok', () => judgeMixed([process('1+a'), process('1+a')])],
    ['two', 'warn', () => judgeMixed([process('1+a'), process('1+b')])],
    ['nobody who tells', 'unknown', () => judgeMixed([])],
  ],
  CONTRACTS_AGREE: [
    ['one contract', 'ok', () => judgeContracts([process('1+a'), process('1+b')])],
    ['two', 'warn', () => judgeContracts([process('1+a'), process('1+a', 'another')])],
    ['one that does not tell', 'unknown', () => judgeContracts([process('1+a'), process('1+a', '')])],
  ],
  DATABASE: [
    [
      'room for connections',
      'ok',
      () => databaseAnswers.judge([{ version: '18', recovering: false, used: 89, limit: 100, oldestMs: 59_999 }]),
    ],
    [
      'a standby',
      'fail',
      () => databaseAnswers.judge([{ version: '18', recovering: true, used: 1, limit: 100, oldestMs: 0 }]),
    ],
  ],
  MIGRATIONS: [
    [
      'no database to ask',
      'unknown',
      () => probeMigrations(() => Promise.reject(new DatabaseAway(new Error('ECONNREFUSED')))).run(signal),
    ],
    [
      'missing ones',
      'fail',
      () =>
        judgeMigrations({
          ready: false,
          reason: 'SCHEMA_BEHIND',
          why: 'missing b',
          newestInDatabase: 'a',
          state: { state: 'behind', missing: ['b'], unknown: [], edited: [], failed: [] },
        }),
    ],
  ],
  DATABASE_RESTORED: [
    ['one history', 'ok', () => databaseRestored.judge([fence])],
    ['no row', 'unknown', () => databaseRestored.judge([])],
    ['a restore that is not dealt with', 'fail', () => databaseRestored.judge([{ ...fence, closed: true }])],
    ['another place than it knows', 'fail', () => databaseRestored.judge([{ ...fence, here: 'elsewhere' }])],
    [
      'a restore that nobody accepted',
      'fail',
      () => databaseRestored.judge([{ ...fence, restores: 1n, because: 'x' }]),
    ],
    ['a fence that is open', 'ok', () => fenced(open)],
    ['a fence that could not decide', 'fail', () => fenced({ ...open, pass: undefined })],
    ['a fence that asks nobody outside', 'warn', () => fenced({ ...open, outsideKnown: false })],
    [
      'what the rows say, whatever the fence does',
      'fail',
      () => fenced({ ...open, outsideKnown: false }, { ...fence, closed: true }),
    ],
  ],
  CLOCKS: [
    ['half a second', 'ok', () => judgeClocks({ theirs: 600, sentAt: 0, receivedAt: 100 })],
    ['more', 'warn', () => judgeClocks({ theirs: 601, sentAt: 0, receivedAt: 100 })],
    ['five seconds', 'warn', () => judgeClocks({ theirs: -5_000, sentAt: 0, receivedAt: 100 })],
    ['more', 'fail', () => judgeClocks({ theirs: -5_001, sentAt: 0, receivedAt: 100 })],
    [
      'a fleet that is apart',
      'fail',
      () =>
        judgeClocksOfFleet([
          { ...process('1+a'), clock: { offsetMs: 0, withinMs: 0 } },
          { ...process('1+a'), clock: { offsetMs: 5_000, withinMs: 0 } },
        ]),
    ],
  ],
  NATS: [['no connection', 'fail', () => probeNats(noNats).run(signal)]],
  REDIS: [
    ['an answer', 'ok', () => claims(true, 'closed')],
    ['none, where claims go on', 'warn', () => claims(false, 'open')],
    ['none, where they do not', 'fail', () => claims(false, 'closed')],
    ['no limits to keep', 'skip', () => claims(false, 'closed', false)],
  ],
  PRESENCE: [
    ['all that is attached', 'ok', () => judgePresence(picture)],
    ['one that Redis does not know', 'fail', () => judgePresence({ ...picture, lost: 1 })],
  ],
  LEASES: [
    ['its own', 'ok', () => judgeLeases('one', leases)],
    ['one that is over', 'fail', () => judgeLeases('two', leases)],
    ['none', 'fail', () => judgeLeases('three', leases)],
  ],
  GHOSTS: [
    ['entries of gateways that live', 'ok', () => judgeGhosts([{ gatewayId: 'one' }], leases)],
    ['one of a lease that is over', 'warn', () => judgeGhosts([{ gatewayId: 'one' }, { gatewayId: 'two' }], leases)],
    ['one of nobody', 'warn', () => judgeGhosts([{ gatewayId: 'three' }], leases)],
  ],
  STREAMS: [
    ['no NATS to ask', 'unknown', () => probeStreams(noNats).run(signal)],
    [
      'one that is missing',
      'fail',
      () => judgeStreams([{ subject: 'stream SESSION', missing: true, what: '' }], undefined, new Date(0)),
    ],
  ],
  CONSUMERS: [
    ['no NATS to ask', 'unknown', () => probeConsumers(noNats).run(signal)],
    [
      'events and nobody who takes them',
      'fail',
      () => judgeConsumers([{ consumer: 'c', stream: 'S', pending: 1, unsettled: 0, redelivered: 0, receivers: 0 }]),
    ],
  ],
  OUTBOX: [
    ['nothing', 'ok', () => rows(ofSession, 'OUTBOX')],
    ['an old event', 'fail', () => rows(ofSession, 'OUTBOX', { pending: 1, oldestMs: 60_000, subject: 's' })],
  ],
  DEAD_LETTERS: [
    ['none', 'ok', () => rows(ofSession, 'DEAD_LETTERS')],
    ['one', 'warn', () => rows(ofSession, 'DEAD_LETTERS', { consumer: 'c', letters: 1, newest: new Date(0) })],
  ],
  TELEMETRY: [
    ['a span that was taken', 'ok', () => judgeTelemetry(arrivals, { ...arrivals, spans: { ...spans, exported: 2 } })],
    ['one that was not', 'fail', () => judgeTelemetry(arrivals, arrivals)],
  ],
  CONSTRAINTS: [['a database without any', 'fail', () => rows(ofSession, 'CONSTRAINTS')]],
  SESSION_ROWS: [
    ['whole rows', 'ok', () => rows(ofSession, 'SESSION_ROWS', sessionRows)],
    ['no ephemeral key', 'fail', () => rows(ofSession, 'SESSION_ROWS', { ...sessionRows, withoutEphemeral: 1 })],
    ['no identity key', 'fail', () => rows(ofSession, 'SESSION_ROWS', { ...sessionRows, withoutIdentity: 1 })],
    ['an import without', 'warn', () => rows(ofSession, 'SESSION_ROWS', { ...sessionRows, importedWithoutKeys: 1 })],
    ['no answer', 'unknown', () => rows(ofSession, 'SESSION_ROWS')],
  ],
  IDENTITY_KEYS: [
    [
      'full key sets',
      'ok',
      () => rows(ofIdentityKeys, 'IDENTITY_KEYS', { looked: 9, wrong: 0, without: null, writerBuild: null }),
    ],
    [
      'one without',
      'fail',
      () => rows(ofIdentityKeys, 'IDENTITY_KEYS', { looked: 9, wrong: 1, without: 'root key', writerBuild: '1+a' }),
    ],
    ['no answer', 'unknown', () => rows(ofIdentityKeys, 'IDENTITY_KEYS')],
  ],
  ENVELOPE_COUNTS: [
    ['as many as expected', 'ok', () => rows(ofSession, 'ENVELOPE_COUNTS', counts)],
    ['fewer', 'fail', () => rows(ofSession, 'ENVELOPE_COUNTS', { ...counts, wrong: 1, example: 'c/s' })],
    ['no answer', 'unknown', () => rows(ofSession, 'ENVELOPE_COUNTS')],
  ],
  CONVERSATION_SESSIONS: [
    [
      'an epoch that has its row',
      'ok',
      () => rows(ofConversation, 'CONVERSATION_SESSIONS', { session: 'c/s', hasEpoch: true, writerBuild: '1+a' }),
    ],
    [
      'one that has none',
      'fail',
      () => rows(ofConversation, 'CONVERSATION_SESSIONS', { session: 'c/s', hasEpoch: false, writerBuild: '1+a' }),
    ],
    ['sessions that are stored', 'ok', () => rows(ofSession, 'CONVERSATION_SESSIONS')],
    ['one that is not', 'fail', () => rows(ofSession, 'CONVERSATION_SESSIONS', { missing: 'c/s' })],
  ],
  OLD_BUILD_WRITES: [
    ['builds that run', 'ok', () => judgeOldWriters([`1+a ${new Date(599_000).toISOString()}`], [process('1+a')])],
    ['one that ended with the roll-out', 'warn', () => judgeOldWriters([wroteAt(119_999)], [process('1+a')])],
    ['one that does not', 'fail', () => judgeOldWriters([wroteAt(120_000)], [process('1+a')])],
  ],
  OLDEST_OPEN_REQUEST: [
    [
      'a young one that is looked at',
      'ok',
      () =>
        rows(ofSession, 'OLDEST_OPEN_REQUEST', { ...requests, oldestMs: openWarnMs - 1, overdueMs: overdueFailMs - 1 }),
    ],
    ['an old one', 'warn', () => rows(ofSession, 'OLDEST_OPEN_REQUEST', { ...requests, oldestMs: openWarnMs })],
    [
      'one that nobody looks at',
      'fail',
      () => rows(ofSession, 'OLDEST_OPEN_REQUEST', { ...requests, oldestMs: openWarnMs, overdueMs: overdueFailMs }),
    ],
    [
      'one that waits for its first look',
      'fail',
      () => rows(ofSession, 'OLDEST_OPEN_REQUEST', { ...requests, neverSeenMs: overdueFailMs }),
    ],
    [
      'one that waits for its first look, not for long',
      'ok',
      () => rows(ofSession, 'OLDEST_OPEN_REQUEST', { ...requests, neverSeenMs: overdueFailMs - 1 }),
    ],
    ['no answer', 'unknown', () => rows(ofSession, 'OLDEST_OPEN_REQUEST')],
  ],
  PREKEY_POOLS: [
    ['some in each', 'ok', () => rows(ofIdentityKeys, 'PREKEY_POOLS', { ...pools, low: 5 })],
    ['few in most', 'warn', () => rows(ofIdentityKeys, 'PREKEY_POOLS', { ...pools, low: 6 })],
    ['an empty pool', 'warn', () => rows(ofIdentityKeys, 'PREKEY_POOLS', { ...pools, emptyOneTime: 1 })],
    ['an empty pool of the other kind', 'warn', () => rows(ofIdentityKeys, 'PREKEY_POOLS', { ...pools, emptyKem: 5 })],
    ['most of them empty', 'fail', () => rows(ofIdentityKeys, 'PREKEY_POOLS', { ...pools, emptyKem: 6 })],
    [
      'few devices, all empty',
      'warn',
      () => rows(ofIdentityKeys, 'PREKEY_POOLS', { ...pools, looked: 9, emptyKem: 9 }),
    ],
    ['no answer', 'unknown', () => rows(ofIdentityKeys, 'PREKEY_POOLS')],
  ],
  CANDIDATES: [
    ['none', 'ok', () => rows(ofConversation, 'CANDIDATES')],
    ['a young one', 'ok', () => rows(ofConversation, 'CANDIDATES', { ...candidate, oldestMs: candidateWarnMs - 1 })],
    ['an old one', 'warn', () => rows(ofConversation, 'CANDIDATES', { ...candidate, oldestMs: candidateWarnMs })],
    [
      'one that is stuck',
      'fail',
      () => rows(ofConversation, 'CANDIDATES', { ...candidate, oldestMs: candidateFailMs }),
    ],
  ],
  // A fleet that a key does not get through: packages/cli/test/doctor.test.ts, test/faults/doctor-rows.test.ts.
  REPRODUCTION: [
    ['nobody who gives tokens', 'skip', () => reproduce(session({}))],
    ['services that nobody names', 'unknown', () => reproduce(session({ KEYTRAIL_TOKEN_COMMAND: 'false' }))],
    ['a command that gives none', 'unknown', () => reproduce(session({ ...targets, KEYTRAIL_TOKEN_COMMAND: 'false' }))],
  ],
};

describe.each(checkCatalogue.map(({ code }) => code))('%s', (code) => {
  it.each(cases[code].map(([what, status, found]) => ({ what, status, found })))(
    'of $what is $status',
    async ({ status, found }) => {
      const outcome = await found();
      expect(outcome.status).toBe(status);
      expect(outcome.summary).not.toBe('');
      if (status === 'warn' || status === 'fail') expect(outcome.hint, 'what to do').toMatch(/\w+ \w+/);
    },
  );
});

test('every check that judges is shown something that it does not call ok', () => {
  const blind = checkCatalogue.filter(({ code }) => !cases[code].some(([, status]) => status !== 'ok'));
  expect(blind).toEqual([]);
});
