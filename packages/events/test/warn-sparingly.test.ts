import type { Logger } from '@keytrail/telemetry';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { warnSparingly } from '../src/warn-sparingly.ts';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

test('eight failures a second are one line in ten seconds, which says how many there were', () => {
  const warn = vi.fn();
  const tell = warnSparingly({ warn } as unknown as Logger, 'it failed');
  const error = new Error('relation "outbox" does not exist');
  for (let failure = 0; failure < 8 * 30; failure += 1) {
    tell(error);
    vi.advanceTimersByTime(125);
  }
  expect(warn.mock.calls).toEqual([
    [{ err: error }, 'it failed'],
    [{ err: error, untold: 79 }, 'it failed'],
    [{ err: error, untold: 79 }, 'it failed'],
  ]);
});
