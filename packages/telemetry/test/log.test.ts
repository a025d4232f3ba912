import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { currentTraceId, pseudonym, withSpan } from '../src/index.ts';
import type { Observed } from './fixture.ts';
import { Lines, observe } from './fixture.ts';

const lines = new Lines();
let observed: Observed;
beforeAll(async () => {
  observed = await observe({}, lines);
});
beforeEach(() => {
  lines.text.length = 0;
});
afterAll(() => observed.stop());

test('a line carries the trace and the build it belongs to', () => {
  const { log, build } = observed.telemetry;
  const id = withSpan('request', {}, () => {
    log.info({ epoch: 3 }, 'session written');
    return currentTraceId();
  });
  log.info('outside');
  const [inside, outside] = lines.json;
  expect(inside).toMatchObject({
    level: 'info',
    service: 'session',
    instance: 'session-1',
    build: build.writerBuild,
    trace_id: id,
    epoch: 3,
    message: 'session written',
  });
  expect(id).toMatch(/^[0-9a-f]{32}$/);
  expect(outside).not.toHaveProperty('trace_id');
});

test('credentials and keys never reach a line, wherever they stand', () => {
  const { log } = observed.telemetry;
  const secrets = {
    authorization: 'Bearer s3cret',
    nested: { token: 's3cret', list: [{ sessionKey: Uint8Array.of(1, 2, 3) }] },
    url: 'postgres://keytrail:s3cret@db/keytrail',
    note: 'got eyJhbGciOiJFZERTQSJ9.s3cret.s3cret back',
    envelope: new Uint8Array(48),
    error: new Error('refused Bearer s3cret'),
  };
  log.warn(secrets, 'called with Bearer s3cret');
  log
    .child({ password: 's3cret' })
    .child({ rootKeys: ['s3cret'] })
    .warn('child');
  log.error(new Error('postgres://keytrail:s3cret@db'));
  log.error({ error: new Error('Bearer s3cret') });
  expect(lines.text.join('')).not.toContain('s3cret');
  expect(lines.json[0]).toMatchObject({
    nested: { token: '[redacted]', list: [{ sessionKey: '[redacted]' }] },
    url: 'postgres://keytrail:[redacted]@db/keytrail',
    envelope: '[48 bytes]',
    message: 'called with Bearer [redacted]',
  });
  expect(lines.json[1]).toMatchObject({ password: '[redacted]', rootKeys: '[redacted]', message: 'child' });
  expect(lines.json[2]).toMatchObject({ error: { type: 'Error', message: 'postgres://keytrail:[redacted]@db' } });
});

test('users and devices are told by pseudonym, numbers stay', () => {
  observed.telemetry.log.info({
    userId: 'alice',
    device: 'phone',
    holderDeviceId: 'tablet',
    members: ['alice'],
    deviceKeys: 4,
    size: 2n,
  });
  expect(lines.json[0]).toMatchObject({
    userId: pseudonym('alice'),
    device: pseudonym('phone'),
    holderDeviceId: pseudonym('tablet'),
    members: [pseudonym('alice')],
    deviceKeys: 4,
    size: '2',
  });
});
