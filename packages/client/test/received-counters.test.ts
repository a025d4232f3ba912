import { expect, test } from 'vitest';
import { type CounterRanges, hasCounter, withCounter } from '../src/received-counters.ts';

function seen(...counters: number[]): CounterRanges {
  return counters.reduce<CounterRanges>((ranges, counter) => withCounter(ranges, BigInt(counter)), []);
}

test('counters in any order are kept as few ranges', () => {
  expect(seen(5, 3, 4, 0, 9, 4, 2)).toEqual([
    { first: 0n, last: 0n },
    { first: 2n, last: 5n },
    { first: 9n, last: 9n },
  ]);
  const ranges = seen(0, 2, 3);
  expect([0, 1, 2, 3, 4].map((counter) => hasCounter(ranges, BigInt(counter)))).toEqual([
    true,
    false,
    true,
    true,
    false,
  ]);
  expect(seen(0, 2, 3, 1)).toEqual([{ first: 0n, last: 3n }]);
});

test('a sender that leaves gaps without end has the lowest of them closed', () => {
  const ranges = seen(...Array.from({ length: 1_500 }, (_, n) => n * 2));
  expect(ranges).toHaveLength(1_000);
  expect(ranges[0]).toEqual({ first: 0n, last: 1_000n });
  expect(hasCounter(ranges, 2_999n)).toBe(false);
});
