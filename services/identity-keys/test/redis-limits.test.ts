import { randomUUID } from 'node:crypto';
import { ensureRedis, type ServerHandle } from '@keytrail/local';
import fc from 'fast-check';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { Bill } from '../src/domain/claim-bill.ts';
import type { Rate } from '../src/domain/gcra.ts';
import { createLimitsInProcess } from '../src/store/limits-in-process.ts';
import { RedisLimits } from '../src/store/redis-limits.ts';

let redis: ServerHandle;
let nowUs = 1_700_000_000_000_000;
const stores: RedisLimits[] = [];

beforeAll(async () => {
  redis = await ensureRedis({ own: true });
});
afterAll(async () => {
  for (const store of stores) store.close();
  await redis?.stop();
});

async function connected(options: { nowUs?: () => number } = {}): Promise<RedisLimits> {
  const store = new RedisLimits({ url: redis.url, timeoutMs: 5_000, onError: () => {}, ...options });
  stores.push(store);
  const probe: Bill = [
    { scope: 'caller', rate: { intervalUs: 1, burst: 1 }, cost: 1, buckets: [randomUUID()], targets: [] },
  ];
  await vi.waitFor(() => store.spend(probe), 10_000);
  return store;
}

function billFor(run: string, rates: readonly Rate[], counts: readonly number[], costs: readonly number[]): Bill {
  return rates.flatMap((rate, i) => {
    const buckets = Array.from({ length: counts[i] ?? 0 }, (_, n) => `${run} ${i}/${n}`);
    const cost = costs[i] ?? 0;
    return buckets.length > 0 && cost > 0 ? [{ scope: 'target' as const, rate, cost, buckets, targets: [] }] : [];
  });
}

test('the scripts decide as the model does, to the microsecond', async () => {
  const store = await connected({ nowUs: () => nowUs });
  const rate = fc.record({
    // Long enough that no bucket is forgotten by Redis's own clock meanwhile.
    intervalUs: fc.integer({ min: 5_000_000, max: 3_600_000_000 }),
    burst: fc.integer({ min: 1, max: 4_000 }),
  });
  const small = fc.integer({ min: 0, max: 3 });
  const step = fc.record({
    afterUs: fc.integer({ min: 0, max: 10_000_000_000 }),
    counts: fc.tuple(small, small),
    costs: fc.tuple(fc.integer({ min: 0, max: 4_100 }), fc.integer({ min: 0, max: 3 })),
    refund: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(fc.tuple(rate, rate), fc.array(step, { maxLength: 20 }), async (rates, steps) => {
      const model = createLimitsInProcess(() => nowUs);
      const run = randomUUID();
      for (const { afterUs, counts, costs, refund } of steps) {
        nowUs += afterUs;
        const bill = billFor(run, rates, counts, costs);
        if (bill.length === 0) continue;
        const expected = model.spend(bill);
        expect(await store.spend(bill)).toEqual(expected);
        if (!refund) continue;
        model.refund(bill);
        await store.refund(bill);
      }
    }),
    { numRuns: 60 },
  );
});

test('forty spenders over two connections spend the burst and no more', async () => {
  const [a, b] = [await connected(), await connected()];
  const run = randomUUID();
  const bill = billFor(run, [{ intervalUs: 3_600_000_000, burst: 25 }], [3], [1]);
  const spent = await Promise.all(Array.from({ length: 40 }, (_, i) => (i % 2 === 0 ? a : b).spend(bill)));
  expect(spent.filter(({ allowed }) => allowed)).toHaveLength(25);
  await a.refund(bill);
  expect((await b.spend(bill)).allowed).toBe(true);
  expect((await a.spend(bill)).allowed).toBe(false);
});

test('what is refused costs nothing in any bucket', async () => {
  const store = await connected();
  const run = randomUUID();
  const rates = [
    { intervalUs: 1_000_000_000, burst: 5 },
    { intervalUs: 1_000_000_000, burst: 1 },
  ];
  expect((await store.spend(billFor(run, rates, [1, 1], [1, 1]))).allowed).toBe(true);
  for (let i = 0; i < 10; i++)
    expect(await store.spend(billFor(run, rates, [1, 1], [1, 1]))).toMatchObject({ allowed: false, refusedBy: 1 });
  expect((await store.spend(billFor(run, rates, [1], [4]))).allowed).toBe(true);
});

test('every bucket is forgotten by the time it is full again', async () => {
  const store = await connected();
  const run = randomUUID();
  await store.spend(billFor(run, [{ intervalUs: 1_000_000, burst: 10 }], [2], [3]));
  const direct = new Redis(redis.url);
  try {
    const keys = (await direct.keys('*')).filter((key) => key.includes(run));
    expect(keys).toHaveLength(2);
    for (const key of keys) {
      const ttl = await direct.pttl(key);
      expect(ttl).toBeGreaterThan(0);
      expect(ttl).toBeLessThanOrEqual(3_001);
    }
  } finally {
    direct.disconnect();
  }
});

test('a claim of 1,500 devices is one script', async () => {
  const store = await connected();
  const run = randomUUID();
  const rate = { intervalUs: 60_000_000, burst: 1_500 };
  const bill = billFor(run, [rate, rate, rate], [1, 1_500, 1_500], [1_500, 1, 1]);
  expect(await store.spend(bill)).toEqual({ allowed: true });
  expect(await store.spend(bill)).toMatchObject({ allowed: false, refusedBy: 0 });
  await store.refund(bill);
  expect(await store.spend(bill)).toEqual({ allowed: true });
});
