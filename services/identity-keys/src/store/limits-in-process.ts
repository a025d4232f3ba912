import { LRUCache } from 'lru-cache';
import type { Charge } from '../domain/claim-bill.ts';
import { refund, spend } from '../domain/gcra.ts';
import type { LimitStore } from './limit-store.ts';

const bucketsRemembered = 100_000;

/** The buckets of this process alone. The least recent are forgotten, which makes them full. */
export function createLimitsInProcess(nowUs: () => number = monotonicUs): LimitStore {
  const arrivals = new LRUCache<string, number>({ max: bucketsRemembered });

  return {
    spend(bill) {
      const buckets = bucketsOf(bill);
      const outcome = spend(
        buckets,
        buckets.map(({ bucket }) => arrivals.get(bucket)),
        nowUs(),
      );
      if (!outcome.allowed) return outcome;
      for (const [i, { bucket }] of buckets.entries()) arrivals.set(bucket, outcome.arrivals[i] as number);
      return { allowed: true };
    },
    refund(bill) {
      for (const { bucket, ...spending } of bucketsOf(bill)) {
        const arrival = refund(spending, arrivals.get(bucket), nowUs());
        if (arrival === undefined) arrivals.delete(bucket);
        else arrivals.set(bucket, arrival);
      }
    },
  };
}

function bucketsOf(bill: readonly Charge[]) {
  return bill.flatMap(({ buckets, rate, cost }) => buckets.map((bucket) => ({ bucket, rate, cost })));
}

function monotonicUs(): number {
  return Math.round((performance.timeOrigin + performance.now()) * 1000);
}
