import type { HrTime, TimeInput } from '@opentelemetry/api';

/** Wall-clock time in ms with fractions that never runs backwards. */
export interface Clock {
  now(): number;
}

const toleranceMs = 5;
let current = anchoredAt(performance.timeOrigin);

/**
 * The clock of now. It follows the monotonic one, whose fractions order spans within a millisecond, and is replaced when the
 * wall clock has been set or has drifted; what started with the former one stays with it, so that durations hold.
 */
export function currentClock(): Clock {
  const drift = Date.now() - current.now();
  if (drift > toleranceMs || drift < -toleranceMs) current = anchoredAt(Date.now() - performance.now());
  return current;
}

function anchoredAt(origin: number): Clock {
  return { now: () => origin + performance.now() };
}

/** Any of OpenTelemetry's time forms as ms since 1970. */
export function epochMs(time: TimeInput): number {
  if (time instanceof Date) return time.getTime();
  if (typeof time !== 'number') return time[0] * 1_000 + time[1] / 1_000_000;
  // The API lets a number be a reading of performance.now().
  return time < performance.timeOrigin ? performance.timeOrigin + time : time;
}

export function hrTime(ms: number): HrTime {
  const seconds = Math.floor(ms / 1_000);
  return [seconds, Math.round((ms - seconds * 1_000) * 1_000) * 1_000];
}
