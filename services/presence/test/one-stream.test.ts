import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { parseDeviceEntry } from '../src/domain/device-entry.ts';
import { type AttachedDevice, type Fixture, startFixture } from './fixture.ts';

let fixture: Fixture;
beforeAll(async () => {
  fixture = await startFixture();
});
afterEach(() => fixture.endTest());
afterAll(() => fixture?.[Symbol.asyncDispose]());

const rounds = 40;

/** Those of the attempts that were greeted. */
function greeted(outcomes: readonly PromiseSettledResult<AttachedDevice>[]): AttachedDevice[] {
  return outcomes.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
}

async function connectionInRedis(userId: string, deviceId: string): Promise<string | undefined> {
  return parseDeviceEntry((await fixture.admin.hget(`keytrail:devices:{${userId}}`, deviceId)) ?? '')?.connectionId;
}

describe('two attaches of one device at the same time, at two replicas', () => {
  test('leave one stream, the newer one, and Redis names it, however they meet', async () => {
    const gateways = [await fixture.gateway(), await fixture.gateway()];
    const phones = await Promise.all(gateways.map((at) => fixture.device(at, 'alice', 'phone')));
    for (let round = 1; round <= rounds; round += 1) {
      const turned = round % 2 === 0 ? phones : [...phones].reverse();
      const counters = [BigInt(round * 2), BigInt(round * 2 + 1)];
      const outcomes = await Promise.allSettled(turned.map((phone, n) => phone.attach(counters[n] as bigint)));
      const newer = outcomes[1];
      if (newer?.status !== 'fulfilled') throw new Error(`round ${round}: the newer one was refused`);
      // The older one was refused, or was greeted and is told.
      for (const older of greeted(outcomes.slice(0, 1)))
        expect((await older.ended())?.reason).toBe('CONNECTION_SUPERSEDED');
      expect(await connectionInRedis('alice', 'phone')).toBe(newer.value.connectionId);
      await fixture.notify('alice', 'phone');
      expect((await newer.value.stream.next()).value?.message.case).toBe('notification');
    }
  });

  test('leave one stream when both bring the same counter', async () => {
    const gateways = [await fixture.gateway(), await fixture.gateway()];
    const phones = await Promise.all(gateways.map((at) => fixture.device(at, 'bob', 'phone')));
    for (let round = 1; round <= rounds; round += 1) {
      const [first, ...more] = greeted(await Promise.allSettled(phones.map((phone) => phone.attach(BigInt(round)))));
      expect(more).toEqual([]);
      expect(await connectionInRedis('bob', 'phone')).toBe(first?.connectionId);
    }
  });
});

test('many attaches of one device, over two replicas, end in one stream that is notified', async () => {
  const gateways = [await fixture.gateway(), await fixture.gateway()];
  const phones = await Promise.all(gateways.map((at) => fixture.device(at, 'carol', 'phone')));
  const outcomes = await Promise.allSettled(
    Array.from({ length: 40 }, (_, n) => (phones[n % 2] as (typeof phones)[number]).attach(BigInt(n + 1))),
  );
  const streams = greeted(outcomes);
  const survivor = streams.find(({ connectionId }) => connectionId === streams.at(-1)?.connectionId) as AttachedDevice;
  for (const each of streams.filter((other) => other !== survivor))
    expect((await each.ended())?.reason).toBe('CONNECTION_SUPERSEDED');
  expect(await connectionInRedis('carol', 'phone')).toBe(survivor.connectionId);
  await fixture.notify('carol', 'phone');
  expect((await survivor.stream.next()).value?.message.case).toBe('notification');
});
