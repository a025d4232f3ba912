import { expect, test } from 'vitest';
import { type Spans, telemetryVerdict } from './telemetry-verdict.ts';

function verdictOf(spans: { readonly '1pct'?: readonly Spans[]; readonly '100pct'?: readonly Spans[] }) {
  const rounds = (speeds: readonly number[]) =>
    speeds.map((requestsPerSecond) => ({
      requestsPerSecond,
      p50Ms: 1,
      p99Ms: 2,
      serverCores: 1,
      loadCores: 1,
      serverMicrosecondsEach: 1_000_000 / requestsPerSecond,
    }));
  const found = { off: rounds([100, 200, 300]), '1pct': rounds([90, 190, 400]), '100pct': rounds([50, 150, 100]) };
  const sound = [{ exported: 400, lost: 0 }];
  return telemetryVerdict({ found, spans: { '1pct': sound, '100pct': sound, ...spans } });
}

test('a row of telemetry is its median against that of the same process without', () => {
  const { rows, refused } = verdictOf({});
  expect(rows.map(({ name, value, baseline, ratio }) => ({ name, value, baseline, ratio }))).toEqual([
    { name: 'telemetry.hit.1pct', value: 190, baseline: 200, ratio: 0.95 },
    { name: 'telemetry.hit.100pct', value: 100, baseline: 200, ratio: 0.5 },
  ]);
  expect(refused).toEqual({});
});

test('a row is refused when a span of it was lost in any round, and the other one is not', () => {
  const lost = [
    { exported: 900, lost: 0 },
    { exported: 800, lost: 1 },
  ];
  const { rows, refused, details } = verdictOf({ '100pct': lost });
  expect(rows.map(({ name }) => name)).toEqual(['telemetry.hit.1pct']);
  expect(refused).toEqual({ 'telemetry.hit.100pct': expect.stringMatching(/^1 spans were lost, which makes hits/) });
  expect(details['telemetry.hit.100pct']).toMatchObject({ spans: { exported: [900, 800], lost: [0, 1] } });
});

test('a row is refused when fewer spans were exported in a round than its rate makes', () => {
  const { rows, refused } = verdictOf({
    '1pct': [
      { exported: 200, lost: 0 },
      { exported: 1, lost: 0 },
    ],
  });
  expect(rows.map(({ name }) => name)).toEqual(['telemetry.hit.100pct']);
  expect(refused).toEqual({ 'telemetry.hit.1pct': expect.stringMatching(/^only 1 spans were exported in a round/) });
});
