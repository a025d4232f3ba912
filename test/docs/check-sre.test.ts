import { expect, test } from 'vitest';
import { type Checked, summaryOf } from '../../deploy/prometheus/summary.ts';

const ended = (...all: readonly Checked['ended'][]) =>
  summaryOf(all.map((each, place) => ({ what: `check ${place}`, ended: each })));

test('the last line of check-sre says what had no program to check it, and does not pass that off as sound', () => {
  expect(ended('ok', 'ok')).toBe('2 ok, 0 failed');
  expect(ended('ok', 'failed')).toBe('1 ok, 1 failed');
  expect(ended('ok', 'not checked', 'not checked')).toBe(
    '1 ok, 0 failed, 2 skipped. NOT CHECKED: check 1, check 2; why stands above',
  );
  expect(ended('not checked', 'not checked')).toBe('0 ok, 0 failed, 2 skipped. NOTHING WAS CHECKED; why stands above');
});
