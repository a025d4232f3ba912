import type { Round } from './load.ts';
import { type Measured, median, rounded, rowOf } from './measurement.ts';

/** What became of the spans of one round, of the process that was measured. */
export interface Spans {
  readonly exported: number;
  /** Those that were dropped for want of room, or that the receiver did not take: work that was not done, so that the round was cheaper. */
  readonly lost: number;
}

/** Rounds with and without telemetry, and what became of the spans of each. */
export interface TelemetryRounds {
  readonly found: Readonly<Record<'off' | '1pct' | '100pct', readonly Round[]>>;
  readonly spans: Readonly<Record<'1pct' | '100pct', readonly Spans[]>>;
}

/** Each rate against the same process without telemetry. A row is refused when spans were lost in any round, or its share was not exported in one. */
export function telemetryVerdict({ found, spans }: TelemetryRounds): Measured {
  const perSecond = (rounds: readonly Round[]) => median(rounds.map((one) => one.requestsPerSecond));
  const processorTime = (rounds: readonly Round[]) => median(rounds.map((one) => one.serverMicrosecondsEach));
  const measured = (['1pct', '100pct'] as const).map((mode) => ({
    row: rowOf(`telemetry.hit.${mode}`, 'requests/s', perSecond(found[mode]), perSecond(found.off)),
    problem: problemOf(spans[mode], found[mode], shares[mode]),
    details: {
      // On a busy machine this varies less than requests per second.
      ratioByProcessorTime: rounded(processorTime(found.off) / processorTime(found[mode])),
      serverMicrosecondsEach: { off: rounded(processorTime(found.off)), on: rounded(processorTime(found[mode])) },
      requestsPerSecond: {
        off: found.off.map((one) => rounded(one.requestsPerSecond)),
        on: found[mode].map((one) => rounded(one.requestsPerSecond)),
      },
      spans: {
        exported: spans[mode].map(({ exported }) => exported),
        lost: spans[mode].map(({ lost }) => lost),
      },
    },
  }));
  return {
    rows: measured.filter(({ problem }) => problem === undefined).map(({ row }) => row),
    refused: Object.fromEntries(
      measured
        .filter(({ problem }) => problem !== undefined)
        .map(({ row, problem, details }) => [
          row.name,
          `${problem}, which makes hits cheaper: ${JSON.stringify(details)}`,
        ]),
    ),
    details: Object.fromEntries(measured.map(({ row, details }) => [row.name, details])),
  };
}

const shares = { '1pct': 0.01, '100pct': 1 };

function problemOf(spans: readonly Spans[], rounds: readonly Round[], share: number): string | undefined {
  const lost = spans.reduce((sum, each) => sum + each.lost, 0);
  if (lost > 0) return `${lost} spans were lost`;
  // Of one second's hits: a round has several, and a hit more spans than one.
  const fewest = (place: number) => share * (rounds[place]?.requestsPerSecond ?? 0);
  const few = spans.find(({ exported }, place) => exported < fewest(place));
  return few && `only ${few.exported} spans were exported in a round`;
}
