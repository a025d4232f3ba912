import { readSettings } from '@keytrail/settings';
import { expect, test } from 'vitest';
import { erasureSettings } from '../src/settings.ts';
import { eventRetentionMs } from '../src/topology.ts';

function remembered(ms: number): number {
  return readSettings(erasureSettings, { KEYTRAIL_ERASED_USER_RETENTION_MS: String(ms) }).erasedUserRetentionMs;
}

test('an erasure is remembered for longer than a stream can ask for it again', () => {
  const day = 24 * 60 * 60 * 1000;
  for (const tooShort of [1, eventRetentionMs, eventRetentionMs + day - 1])
    expect(() => remembered(tooShort)).toThrow('KEYTRAIL_ERASED_USER_RETENTION_MS');
  expect(remembered(eventRetentionMs + day)).toBe(eventRetentionMs + day);
  expect(readSettings(erasureSettings, {}).erasedUserRetentionMs).toBe(30 * day);
});
