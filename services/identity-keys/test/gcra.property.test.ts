import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { never, type Rate, ratePerHour, refund, spend } from '../src/domain/gcra.ts';

/** The same promise as a bucket of tokens: it holds `burst`, one comes back each interval, and what is not there is not spent. */
class Tokens {
  readonly #rate: Rate;
  /** In parts of 1 / intervalUs, so that everything stays whole. */
  #parts: number;
  #at = 0;

  constructor(rate: Rate) {
    this.#rate = rate;
    this.#parts = rate.burst * rate.intervalUs;
  }

  /** How long to wait until `cost` can be spent; 0 for now. */
  waitUs(cost: number, nowUs: number): number {
    const { burst, intervalUs } = this.#rate;
    this.#parts = Math.min(burst * intervalUs, this.#parts + nowUs - this.#at);
    this.#at = nowUs;
    if (cost > burst) return never;
    return Math.max(0, cost * intervalUs - this.#parts);
  }

  take(cost: number): void {
    this.#parts -= cost * this.#rate.intervalUs;
  }
}

const rate = fc.record({ intervalUs: fc.integer({ min: 1, max: 5_000 }), burst: fc.integer({ min: 1, max: 20 }) });
const step = fc.record({
  afterUs: fc.integer({ min: 0, max: 20_000 }),
  /** What is spent from each of three buckets; 0 leaves a bucket out. */
  costs: fc.tuple(fc.nat({ max: 22 }), fc.nat({ max: 22 }), fc.nat({ max: 22 })),
  giveBack: fc.boolean(),
});

describe('GCRA over several buckets', () => {
  test('allows exactly what buckets of tokens allow, all or nothing, and names a wait that is long enough and no longer', () => {
    fc.assert(
      fc.property(fc.tuple(rate, rate, rate), fc.array(step, { maxLength: 40 }), (rates, steps) => {
        const tokens = rates.map((each) => new Tokens(each));
        const arrivals: (number | undefined)[] = [undefined, undefined, undefined];
        let nowUs = 0;
        for (const { afterUs, costs, giveBack } of steps) {
          nowUs += afterUs;
          const used = costs.flatMap((cost, i) => (cost > 0 ? [{ i, cost, rate: rates[i] as Rate }] : []));
          const waits = used.map(({ i, cost }) => (tokens[i] as Tokens).waitUs(cost, nowUs));
          const outcome = spend(
            used,
            used.map(({ i }) => arrivals[i]),
            nowUs,
          );
          const longest = Math.max(0, ...waits);
          expect(outcome.allowed).toBe(longest === 0);
          if (!outcome.allowed) {
            expect(outcome.retryAfterUs).toBe(longest);
            expect(waits[outcome.refusedBy]).toBe(longest);
            continue;
          }
          for (const [n, { i, cost, rate: paid }] of used.entries()) {
            if (giveBack) arrivals[i] = refund({ rate: paid, cost }, outcome.arrivals[n], nowUs);
            else {
              arrivals[i] = outcome.arrivals[n];
              (tokens[i] as Tokens).take(cost);
            }
          }
        }
      }),
    );
  });

  test('gives back what was spent as if it had never been, however late', () => {
    const wait = fc.nat({ max: 50_000 });
    const cost = fc.integer({ min: 1, max: 20 });
    fc.assert(
      fc.property(
        rate,
        cost,
        cost,
        cost,
        wait,
        wait,
        wait,
        (each, first, second, third, toSecond, toRefund, toThird) => {
          const once = spend([{ rate: each, cost: first }], [undefined], 0);
          const before = once.allowed ? once.arrivals[0] : undefined;
          const refunded = { rate: each, cost: second };
          const twice = spend([refunded], [before], toSecond);
          fc.pre(twice.allowed);
          const after = refund(refunded, twice.arrivals[0], toSecond + toRefund);
          const at = toSecond + toRefund + toThird;
          const decide = (arrival: number | undefined) => spend([{ rate: each, cost: third }], [arrival], at);
          expect(decide(after)).toEqual(decide(before));
        },
      ),
    );
  });
});

test('a rate of none an hour is no limit', () => {
  expect(ratePerHour(0, 5)).toBeUndefined();
  expect(ratePerHour(60, 5)).toEqual({ intervalUs: 60_000_000, burst: 5 });
});
