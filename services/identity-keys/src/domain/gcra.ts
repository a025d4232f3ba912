/** The generic cell rate algorithm, over several buckets at once. Times are whole microseconds, so that Redis computes the same to the digit. */
export interface Rate {
  /** One unit comes back in this time: whole microseconds, at least 1. */
  readonly intervalUs: number;
  /** Units that may be spent at once. */
  readonly burst: number;
}

/** What is to be spent from one bucket. */
export interface Spending {
  readonly rate: Rate;
  readonly cost: number;
}

/** The theoretical arrival time of each bucket after it was spent from; or which bucket refuses longest, and for how long. */
export type Outcome =
  | { readonly allowed: true; readonly arrivals: readonly number[] }
  | { readonly allowed: false; readonly refusedBy: number; readonly retryAfterUs: number };

/** More than fits into a bucket at all: waiting does not help. */
export const never = Number.POSITIVE_INFINITY;

/** Spends from all buckets or from none. `arrivals` are their theoretical arrival times, undefined for one that is full. */
export function spend(
  spendings: readonly Spending[],
  arrivals: readonly (number | undefined)[],
  nowUs: number,
): Outcome {
  const after: number[] = [];
  let refusedBy = -1;
  let retryAfterUs = 0;
  for (const [i, { rate, cost }] of spendings.entries()) {
    const arrival = Math.max(arrivals[i] ?? 0, nowUs) + cost * rate.intervalUs;
    const wait = cost > rate.burst ? never : arrival - nowUs - rate.burst * rate.intervalUs;
    if (wait > retryAfterUs) [refusedBy, retryAfterUs] = [i, wait];
    after.push(arrival);
  }
  return refusedBy < 0 ? { allowed: true, arrivals: after } : { allowed: false, refusedBy, retryAfterUs };
}

/** The arrival time of a bucket that gets back what was spent; undefined when it is full again. */
export function refund({ rate, cost }: Spending, arrival: number | undefined, nowUs: number): number | undefined {
  if (arrival === undefined) return undefined;
  const before = arrival - cost * rate.intervalUs;
  return before > nowUs ? before : undefined;
}

const hourUs = 3_600_000_000;

/** Undefined when there is no limit. */
export function ratePerHour(perHour: number, burst: number): Rate | undefined {
  return perHour === 0 ? undefined : { intervalUs: Math.max(1, Math.round(hourUs / perHour)), burst };
}
