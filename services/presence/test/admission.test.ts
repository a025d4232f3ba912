import { expect, test } from 'vitest';
import { Admission } from '../src/domain/admission.ts';

test('a crowd that fills every turn of half a minute is spread over it again, and the next one does not wait for its turns', () => {
  const admission = new Admission({ perSecond: 10, atOnce: 0 });
  const told: number[] = [];
  for (let n = 0; n < 10 + 1_000; n += 1) {
    const admitted = admission.enter(1_000);
    if (!admitted.admitted) told.push(admitted.retryAfterMs);
  }
  expect(told).toHaveLength(1_000);
  expect(Math.max(...told)).toBeLessThanOrEqual(30_000);
  // At no moment more than the rounds it takes, however large the crowd.
  const rounds = Math.ceil(told.length / 298) + 1;
  for (const moment of told) expect(told.filter((other) => other === moment).length).toBeLessThanOrEqual(rounds);
  const later = 61_000;
  for (let n = 0; n < 10; n += 1) expect(admission.enter(later).admitted).toBe(true);
  expect(admission.enter(later)).toMatchObject({ admitted: false, retryAfterMs: 300 });
});
