import { ensureRedis, type ServerHandle } from '@keytrail/local';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { probeClaimLimitsRedis } from '../src/checks/claim-limits-redis.ts';
import { RedisLimits } from '../src/store/redis-limits.ts';

let server: ServerHandle;
let redis: RedisLimits;
beforeAll(async () => {
  server = await ensureRedis({ own: true });
  redis = new RedisLimits({ url: server.url, timeoutMs: 5_000, onError: () => {} });
  await vi.waitFor(() => redis.ping(), 10_000);
});
afterAll(async () => {
  redis?.close();
  await server?.stop();
});

function found(withoutRedis: 'open' | 'closed', limited = true) {
  const probe = probeClaimLimitsRedis({ redis, limited, withoutRedis });
  return probe.run(new AbortController().signal);
}

test('REDIS of identity-keys: what a process does without the Redis of its limits is what it tells', async () => {
  expect(await found('open')).toMatchObject({ status: 'ok' });
  expect(await found('closed')).toMatchObject({ status: 'ok' });
  await server.halt?.();
  expect(await found('open')).toMatchObject({
    status: 'warn',
    summary: 'Redis does not answer: the limits on claims hold for each process alone',
  });
  expect(await found('closed')).toMatchObject({
    status: 'fail',
    summary: 'Redis does not answer: all claims of prekeys are refused',
  });
  expect(await found('closed', false)).toMatchObject({ status: 'skip' });
  await server.restart?.();
  await vi.waitFor(async () => expect(await found('closed')).toMatchObject({ status: 'ok' }), 10_000);
});
