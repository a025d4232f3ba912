import { expect, test } from 'vitest';
import type { TraceSpan } from '../src/index.ts';
import { TraceMemory } from '../src/memory.ts';
import { span } from './fixture.ts';

const id = (n: number) => n.toString(16).padStart(32, '0');
const bounds = { traces: 8, bytes: 1_000_000, spansPerTrace: 10, bytesPerSpan: 2_000 };

function ordinary(n: number, more: Partial<TraceSpan> = {}): TraceSpan {
  return { ...span('session', '1', '', 'StoreSession', [n, 1]), traceId: id(n), ...more };
}

function missed(n: number, of?: number): TraceSpan {
  const links = of === undefined ? [] : [{ traceId: id(of), spanId: '1'.padStart(16, '0'), attributes: {} }];
  return ordinary(n, { attributes: { 'keytrail.miss': true, 'keytrail.miss.cause': 'SESSION_NOT_FOUND' }, links });
}

test('ordinary traces go before misses, and before the write that a miss points to', () => {
  const memory = new TraceMemory(bounds);
  memory.add(ordinary(1));
  memory.add(missed(2, 1));
  for (let n = 10; n < 60; n += 1) memory.add(ordinary(n));
  expect(memory.traces).toBe(bounds.traces);
  expect(memory.read(id(1)).spans).toHaveLength(1);
  expect(memory.read(id(2)).spans).toHaveLength(1);
  expect(memory.read(id(59)).spans).toHaveLength(1);
  expect(memory.list({ limit: 10, misses: true }).map((each) => each.id)).toEqual([id(2)]);
});

test('a flood of misses leaves room for the write that comes after it', () => {
  const memory = new TraceMemory(bounds);
  for (let n = 1; n < 50; n += 1) memory.add(missed(n));
  memory.add(ordinary(100));
  memory.add(ordinary(101));
  memory.add(missed(102));
  expect(memory.traces).toBe(bounds.traces);
  expect(memory.read(id(100)).spans).toHaveLength(1);
  expect(memory.read(id(101)).spans).toHaveLength(1);
});

test('misses are listed by when the key was missed: what comes of an old one later does not make it new', () => {
  const memory = new TraceMemory(bounds);
  const [missedFirst, missedThen] = [missed(1), missed(2)].map((miss, at) => ({ ...miss, startMs: 1_000 + at }));
  if (!missedFirst || !missedThen) throw new Error('no spans');
  memory.add(missedThen);
  memory.add(missedFirst);
  const later = { spanId: '2'.padStart(16, '0'), startMs: 9_000 };
  memory.add(ordinary(1, later));
  // The device that waits asks once more, and misses again.
  memory.add({ ...missedFirst, spanId: '3'.padStart(16, '0'), startMs: 9_500 });
  expect(memory.list({ limit: 10, misses: true }).map((each) => each.id)).toEqual([id(2), id(1)]);
  expect(memory.list({ limit: 1, misses: true }).map((each) => each.id)).toEqual([id(2)]);
  expect(memory.list({ limit: 10 }).map((each) => each.id)).toEqual([id(1), id(2)]);
});

test('bytes are bounded over all traces, in each, and of each span; what is left out is counted', () => {
  const memory = new TraceMemory({ ...bounds, bytes: 4_000 });
  for (let n = 1; n < 40; n += 1) {
    memory.add(n % 2 === 0 ? missed(n) : ordinary(n));
    expect(memory.bytes).toBeLessThanOrEqual(4_000);
  }
  memory.add(ordinary(50));
  memory.add(ordinary(50, { spanId: '2'.padStart(16, '0'), name: 'x'.repeat(3_000) }));
  expect(memory.read(id(50))).toMatchObject({ spans: [{ name: 'StoreSession' }], dropped: 1 });
});

test('what is not there is nothing', () => {
  expect(new TraceMemory(bounds).read(id(1))).toEqual({ spans: [], dropped: 0 });
});
