import { createHmac } from 'node:crypto';
import { expect, test } from 'vitest';
import { pseudonym, startTelemetry } from '../src/index.ts';
import { setPseudonymKey } from '../src/pseudonym.ts';
import { config } from './fixture.ts';

test('equal ids have equal pseudonyms under one key, and others under another', () => {
  setPseudonymKey('the first key of pseudonyms');
  const first = pseudonym('alice');
  expect(first).toBe(createHmac('sha256', 'the first key of pseudonyms').update('alice').digest('hex').slice(0, 16));
  expect(pseudonym('bob')).not.toBe(first);
  setPseudonymKey('the second key of pseudonyms');
  expect(pseudonym('alice')).not.toBe(first);
  setPseudonymKey('the first key of pseudonyms');
  expect(pseudonym('alice')).toBe(first);
});

test('a pseudonym holds when the memory of ids is full', () => {
  const first = pseudonym('alice');
  for (let i = 0; i < 25_000; i += 1) pseudonym(`user-${i}`);
  expect(pseudonym('alice')).toBe(first);
});

test('production does not start without a key of its own', () => {
  expect(() => startTelemetry({ service: 'session', config: config({ KEYTRAIL_ENVIRONMENT: 'production' }) })).toThrow(
    'KEYTRAIL_PSEUDONYM_KEY',
  );
});
