import type { SchemaReadiness } from '@keytrail/storage';
import { buildIdentity } from '@keytrail/telemetry';
import { expect, test } from 'vitest';
import { judgeBuildRunning } from '../src/probes/build-running.ts';
import { judgeClocks } from '../src/probes/clocks.ts';
import { judgeMigrations } from '../src/probes/migrations.ts';
import { judgeSourcesOnDisk } from '../src/probes/sources-on-disk.ts';

const build = buildIdentity('session');
const nothing = { missing: [], unknown: [], edited: [], failed: [] };

test.each<[string, SchemaReadiness, string, RegExp]>([
  [
    'the same',
    { ready: true, newestInDatabase: 'b', floor: '', state: { state: 'current', ...nothing } },
    'ok',
    /both end with b/,
  ],
  [
    'ahead within the floor',
    {
      ready: true,
      why: 'unknown c',
      newestInDatabase: 'c',
      floor: '',
      state: { state: 'ahead', ...nothing, unknown: ['c'] },
    },
    'warn',
    /roll it forward/,
  ],
  [
    'ahead beyond the floor',
    {
      ready: false,
      reason: 'BUILD_BEHIND',
      why: 'unknown c',
      newestInDatabase: 'c',
      floor: 'c',
      state: { state: 'ahead', ...nothing, unknown: ['c'] },
    },
    'fail',
    /roll forward to a build/,
  ],
  [
    'behind',
    {
      ready: false,
      reason: 'SCHEMA_BEHIND',
      why: 'missing b',
      newestInDatabase: 'a',
      state: { state: 'behind', ...nothing, missing: ['b'] },
    },
    'fail',
    /keytrail migrate deploy/,
  ],
  [
    'behind by one that is older than others',
    {
      ready: false,
      reason: 'SCHEMA_BEHIND',
      why: 'missing a',
      newestInDatabase: 'b',
      state: { state: 'behind', ...nothing, missing: ['a'] },
    },
    'fail',
    /its row was lost: keytrail migrate resolve/,
  ],
  [
    'failed',
    {
      ready: false,
      reason: 'SCHEMA_BEHIND',
      why: 'failed b',
      newestInDatabase: 'a',
      state: { state: 'diverged', ...nothing, failed: ['b'] },
    },
    'fail',
    /deploy --retry-failed/,
  ],
  [
    'edited',
    {
      ready: false,
      reason: 'SCHEMA_BEHIND',
      why: 'edited a',
      newestInDatabase: 'b',
      state: { state: 'diverged', ...nothing, edited: ['a'] },
    },
    'fail',
    /restore its file/,
  ],
])('migrations that are %s', (_how, found, status, words) => {
  const outcome = judgeMigrations(found);
  expect(outcome.status).toBe(status);
  expect(`${outcome.summary} ${outcome.hint ?? ''}`).toMatch(words);
});

test('sources that changed after the start are told, with how to restart', () => {
  expect(judgeSourcesOnDisk(build, build.sourcesDigest).status).toBe('ok');
  expect(judgeSourcesOnDisk(build, 'other')).toMatchObject({
    status: 'warn',
    evidence: { loaded: build.sourcesDigest, onDisk: 'other' },
    hint: expect.stringContaining(build.restartAdvice),
  });
});

test('a process that nothing would start again is a warning', () => {
  expect(judgeBuildRunning({ ...build, supervisor: 'kubernetes' }).status).toBe('ok');
  expect(judgeBuildRunning({ ...build, supervisor: 'launcher' })).toMatchObject({
    status: 'ok',
    summary: expect.stringContaining('watches nothing'),
  });
  expect(judgeBuildRunning({ ...build, supervisor: 'none' })).toMatchObject({
    status: 'warn',
    hint: build.restartAdvice,
  });
});

test.each([
  ['within the round trip', 1_050, 'ok', 0],
  ['a little ahead', 1_500, 'ok', 400],
  ['ahead', 3_100, 'warn', 2_000],
  ['far behind', -9_000, 'fail', -10_000],
] as const)('the clock of a database that is %s', (_how, theirs, status, databaseAheadMs) => {
  expect(judgeClocks({ theirs, sentAt: 1_000, receivedAt: 1_100 })).toMatchObject({
    status,
    evidence: { databaseAheadMs, roundTripMs: 100 },
  });
});
