import type { ConsumerLag } from '@keytrail/events';
import { describe, expect, it, test } from 'vitest';
import { constraintsCheck, databaseAnswers, deadLettersCheck, judgeWriters, outboxCheck } from '../src/index.ts';
import { judgeConsumers, lagWarnAt } from '../src/probes/consumers.ts';
import { judgeStreams, mendedToldMs } from '../src/probes/streams.ts';
import { judgeTelemetry } from '../src/probes/telemetry.ts';

describe('OUTBOX', () => {
  it.each([
    [9_999, 'ok'],
    [10_000, 'warn'],
    [59_999, 'warn'],
    [60_000, 'fail'],
  ])('is, with an oldest event of %i ms, %s', (oldestMs, status) => {
    expect(outboxCheck.judge([{ pending: 1, oldestMs, subject: 'a.subject' }]).status).toBe(status);
  });
});

describe('DATABASE', () => {
  const sound = { version: '18.1', recovering: false, used: 10, limit: 100, oldestMs: 0 };
  it.each([
    [{}, 'ok'],
    [{ used: 89 }, 'ok'],
    [{ used: 90 }, 'warn'],
    [{ oldestMs: 59_999 }, 'ok'],
    [{ oldestMs: 60_000 }, 'warn'],
    [{ recovering: true, used: 90 }, 'fail'],
  ])('with %j is %s', (change, status) => {
    expect(databaseAnswers.judge([{ ...sound, ...change }]).status).toBe(status);
  });

  it('that told nothing is unknown', () => {
    expect(databaseAnswers.judge([]).status).toBe('unknown');
  });
});

test('DEAD_LETTERS counts them by consumer', () => {
  expect(deadLettersCheck.judge([]).status).toBe('ok');
  const found = deadLettersCheck.judge([
    { consumer: 'one', letters: 2, newest: new Date(1_000) },
    { consumer: 'other', letters: 1, newest: new Date(2_000) },
  ]);
  expect(found).toMatchObject({
    status: 'warn',
    summary: '3 dead letters: one 2, other 1',
    evidence: { deadLetters: 3, newest: '1970-01-01T00:00:02.000Z' },
  });
});

describe('CONSTRAINTS', () => {
  const check = constraintsCheck({
    constraints: { sessions: ['sessions_check'] },
    uniqueIndexes: {},
    triggers: { sessions: ['sessions_immutable'] },
    notNull: { sessions: ['epoch'] },
  });
  const there = [
    { kind: 'constraints', table: 'sessions', name: 'sessions_check', holds: true },
    { kind: 'triggers', table: 'sessions', name: 'sessions_immutable', holds: true },
    { kind: 'notNull', table: 'sessions', name: 'epoch', holds: true },
    { kind: 'constraints', table: 'others', name: 'of_a_newer_build', holds: false },
  ];

  it('that all hold are ok, whatever else there is', () => {
    expect(check.judge(there).status).toBe('ok');
  });

  it.each([
    ['missing', there.slice(1), /sessions\.sessions_check is missing/],
    ['of another table', [{ ...there[0], table: 'others' }, ...there.slice(1)], /sessions_check is missing/],
    ['not validated', [{ ...there[0], holds: false }, ...there.slice(1)], /sessions_check is not validated/],
    ['switched off', [there[0], { ...there[1], holds: false }, there[2]], /sessions_immutable is not enabled/],
    ['nullable', [there[0], there[1], { ...there[2], holds: false }], /sessions\.epoch may be NULL/],
  ])('of which one is %s fail by its name', (_, rows, words) => {
    expect(check.judge(rows)).toMatchObject({ status: 'fail', summary: expect.stringMatching(words) });
  });
});

describe('STREAMS', () => {
  const now = new Date(10_000_000);
  const difference = { subject: 'stream SESSION', missing: false, what: 'max_msgs is 1, wanted -1' };
  it('as in the catalogue are ok', () => {
    expect(judgeStreams([], undefined, now).status).toBe('ok');
  });

  it('that differ or are missing fail, the missing first', () => {
    expect(judgeStreams([difference], undefined, now)).toMatchObject({
      status: 'fail',
      summary: expect.stringContaining('max_msgs is 1'),
    });
    const missing = { subject: 'stream PRESENCE', missing: true, what: '' };
    expect(judgeStreams([difference, missing], undefined, now)).toMatchObject({
      status: 'fail',
      summary: expect.stringContaining('missing: stream PRESENCE'),
    });
  });

  it.each([
    [mendedToldMs - 1, 'warn'],
    [mendedToldMs, 'ok'],
  ])('that were made anew %i ms ago are %s', (ago, status) => {
    const mended = { at: new Date(now.getTime() - ago), what: ['stream SESSION: was missing'] };
    expect(judgeStreams([], mended, now).status).toBe(status);
  });
});

describe('CONSUMERS', () => {
  const lag: ConsumerLag = { consumer: 'a', stream: 'S', pending: 0, unsettled: 0, redelivered: 0, receivers: 1 };
  it.each([
    [{}, 'ok'],
    [{ pending: lagWarnAt - 1 }, 'ok'],
    [{ pending: lagWarnAt }, 'warn'],
    [{ redelivered: 1 }, 'warn'],
    [{ receivers: 0 }, 'ok'],
    [{ receivers: 0, pending: 1 }, 'fail'],
  ])('with %j are %s', (change, status) => {
    expect(judgeConsumers([lag, { ...lag, ...change }]).status).toBe(status);
  });
});

describe('TELEMETRY', () => {
  const before = { exporting: true, spans: { exported: 1, failed: 0, overflowed: 0 }, metrics: {} };
  const spans = { ...before.spans, exported: 2 };
  it.each([
    [{ spans }, 'ok'],
    [{ spans: { ...spans, failed: 1 } }, 'fail'],
    [{ spans: before.spans }, 'fail'],
    [{ spans: { ...spans, overflowed: 1 } }, 'warn'],
    [{ spans, metrics: { lastFailedAt: new Date(2) } }, 'fail'],
    [{ spans, metrics: { lastFailedAt: new Date(2), lastTakenAt: new Date(1) } }, 'fail'],
    [{ spans, metrics: { lastFailedAt: new Date(1), lastTakenAt: new Date(2) } }, 'ok'],
    [{ exporting: false }, 'warn'],
  ])('after %j is %s', (change, status) => {
    expect(judgeTelemetry(before, { ...before, ...change }).status).toBe(status);
  });

  it('does not blame the receiver where there is no room', () => {
    const { hint } = judgeTelemetry(before, { ...before, spans: { ...spans, overflowed: 1 } });
    expect(hint).toContain('KEYTRAIL_TRACE_RATIO');
    expect(hint).not.toContain('refuses');
    expect(judgeTelemetry(before, before).hint).toContain('refuses');
  });

  it('says how many spans were lost in all, whether for want of room or because they were not taken', () => {
    const now = { ...before, spans: { exported: 2, failed: 3, overflowed: 4 } };
    expect(judgeTelemetry(now, { ...now, spans: { ...now.spans, exported: 5 } })).toMatchObject({
      status: 'ok',
      evidence: { spansTaken: 5, spansLost: 7 },
    });
  });
});

test('OLD_BUILD_WRITES names builds with their times, and leaves it to the doctor which of them run', () => {
  expect(judgeWriters([{ writerBuild: '1+a', lastAt: new Date(0) }])).toMatchObject({
    status: 'ok',
    subjects: ['1+a 1970-01-01T00:00:00.000Z'],
  });
});
