import type { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Fixture, startFixture } from './fixture.ts';

let fixture: Fixture;
beforeAll(async () => {
  fixture = await startFixture();
});
afterAll(async () => {
  await fixture?.endTest();
  await fixture?.[Symbol.asyncDispose]();
});

/** Calls of each command since the statistics were reset. */
async function commandsOf(admin: Redis): Promise<Map<string, number>> {
  const found = (await admin.info('commandstats')).matchAll(/cmdstat_([a-z|]+):calls=(\d+)/g);
  return new Map([...found].map(([, name, calls]) => [name as string, Number(calls)]));
}

const attached = 200;
const beats = 10;

test('attached devices that only beat cost Redis nothing each, and ask no service that has a database', async () => {
  const settings = {
    KEYTRAIL_PRESENCE_SWEEP_MS: '3600000',
    KEYTRAIL_GATEWAY_RENEW_MS: '100',
    // On a loaded machine no lease is lost.
    KEYTRAIL_GATEWAY_LEASE_MS: '3600000',
    KEYTRAIL_REVOCATIONS_PULL_MS: '3600000',
    KEYTRAIL_ATTACH_STANDINGS_AT_ONCE: String(attached),
    KEYTRAIL_ATTACH_WAITING_AT_ONCE: String(attached),
  };
  const [holder, other] = [await fixture.gateway(settings), await fixture.gateway(settings)];
  const devices = await Promise.all(
    Array.from({ length: attached }, async (_, n) => {
      const phone = await fixture.device(holder, `user-${n}`, 'phone');
      const { connectionId } = await phone.attach(1n);
      const elsewhere = n % 10 === 0 ? await fixture.device(other, `user-${n}`, 'phone') : phone;
      return { connectionId, presence: elsewhere.presence };
    }),
  );
  const { asked } = fixture.peers;
  const askedBefore = [asked.prekeyStatus, asked.keysWaiting.length, asked.conversationsWaiting.length];
  await fixture.admin.config('RESETSTAT');

  for (let beat = 0; beat < beats; beat += 1)
    await Promise.all(devices.map(({ presence, connectionId }) => presence.heartbeat({ connectionId })));

  const commands = await commandsOf(fixture.admin);
  for (const own of ['config|resetstat', 'info']) commands.delete(own);
  // A renewal: one script with four or five commands, two for each of 16 canaries, and at most 16 entries looked for.
  const renewals = (commands.get('evalsha') ?? 0) + (commands.get('eval') ?? 0);
  expect(renewals).toBeGreaterThan(0);
  expect(commands.get('hexists') ?? 0).toBeLessThanOrEqual(renewals * 16);
  commands.delete('hexists');
  for (const [name, calls] of commands) expect([name, calls <= (renewals + 1) * 16]).toEqual([name, true]);
  // `exists` is the readiness probe.
  const ofRenewals = [
    'exists',
    'evalsha',
    'eval',
    'time',
    'zscore',
    'zremrangebyscore',
    'zadd',
    'pttl',
    'pexpire',
    'set',
    'get',
  ];
  expect([...commands.keys()].filter((name) => !ofRenewals.includes(name))).toEqual([]);
  expect([asked.prekeyStatus, asked.keysWaiting.length, asked.conversationsWaiting.length]).toEqual(askedBefore);
  expect(askedBefore).toEqual([attached, attached, attached]);
});
