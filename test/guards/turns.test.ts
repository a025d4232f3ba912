import { expect, test } from 'vitest';
import { guards } from './guards.ts';
import { inTurns } from './turns.ts';

test('each guard has its turn: none is lost, an order is the same each time, and no guard is always late', () => {
  const half = guards.length / 2;
  const early = new Set<string>();
  for (let revision = 0; revision < 40; revision++) {
    const order = inTurns(guards, String(revision));
    expect(order.map(({ name }) => name)).toEqual(inTurns(guards, String(revision)).map(({ name }) => name));
    expect(order.toSorted((a, b) => (a.name < b.name ? -1 : 1))).toEqual(
      guards.toSorted((a, b) => (a.name < b.name ? -1 : 1)),
    );
    for (const { name } of order.slice(0, half)) early.add(name);
  }
  expect(early.size).toBe(guards.length);
});
