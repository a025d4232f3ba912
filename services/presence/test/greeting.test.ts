import { randomUUID } from 'node:crypto';
import { readRefusal } from '@keytrail/rpc';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type Fixture, startFixture } from './fixture.ts';

let fixture: Fixture;
beforeAll(async () => {
  fixture = await startFixture();
});
afterEach(() => fixture.endTest());
afterAll(() => fixture?.[Symbol.asyncDispose]());

describe('the greeting', () => {
  test('tells what waits: key requests, rotations, changes after the cursors that the device brought, and prekeys', async () => {
    const phone = await fixture.device(await fixture.gateway(), 'alice', 'phone');
    const { greeting } = await phone.attach(1n, { conversationCursor: 'newest', sessionCursor: 'older' });
    expect(greeting.prekeyStatus).toBeDefined();
    expect(greeting.keysWaiting).toMatchObject({ offers: 2, openRequests: 3, changed: true });
    expect(greeting.conversationsWaiting).toMatchObject({
      rotationsDue: ['c0ffee00-0000-4000-8000-000000000000'],
      moreRotationsDue: true,
      changed: false,
    });
    expect(fixture.peers.asked.keysWaiting).toMatchObject([
      { device: { userId: 'alice', deviceId: 'phone' }, cursor: 'older' },
    ]);
    expect(fixture.peers.asked.conversationsWaiting).toMatchObject([
      { device: { userId: 'alice', deviceId: 'phone' }, cursor: 'newest' },
    ]);
  });

  test('comes without what a service that is away cannot tell, and the stream has begun all the same', async () => {
    const presence = await fixture.gateway({ KEYTRAIL_PEER_SESSION: '127.0.0.1:1' });
    const phone = await fixture.device(presence, 'alice', 'phone');
    const { greeting, stream } = await phone.attach(1n);
    expect(greeting.keysWaiting).toBeUndefined();
    expect(greeting.conversationsWaiting).toBeDefined();
    await fixture.notify('alice', 'phone');
    expect((await stream.next()).value?.message.case).toBe('notification');
  });

  test('comes without what is not told in time', async () => {
    const never = Promise.withResolvers<void>();
    fixture.peers.beforeKeys = () => never.promise;
    fixture.peers.beforeConversations = () => never.promise;
    const presence = await fixture.gateway({ KEYTRAIL_ATTACH_WAITING_MS: '50' });
    const { greeting } = await (await fixture.device(presence, 'alice', 'phone')).attach(1n);
    never.resolve();
    expect([greeting.keysWaiting, greeting.conversationsWaiting]).toEqual([undefined, undefined]);
  });

  test('comes without it, and without waiting, to whoever attaches while as many are being asked for as may be', async () => {
    const asked = Promise.withResolvers<void>();
    const answered = Promise.withResolvers<void>();
    fixture.peers.beforeKeys = () => {
      asked.resolve();
      return answered.promise;
    };
    const presence = await fixture.gateway({
      KEYTRAIL_ATTACH_WAITING_AT_ONCE: '1',
      KEYTRAIL_ATTACH_WAITING_MS: '60000',
    });
    const first = (await fixture.device(presence, 'alice', 'phone')).attach(1n);
    await asked.promise;
    const second = await (await fixture.device(presence, 'bob', 'phone')).attach(1n);
    answered.resolve();
    expect(second.greeting.keysWaiting).toBeUndefined();
    expect((await first).greeting.keysWaiting).toBeDefined();
    expect(fixture.peers.asked.keysWaiting).toHaveLength(1);
  });
});

describe('a crowd that comes back', () => {
  test('is let in as fast as the replica may, and told times to come again that are spread', async () => {
    const presence = await fixture.gateway({ KEYTRAIL_ATTACHES_PER_SECOND: '2' });
    const outcomes = await Promise.allSettled(
      Array.from({ length: 12 }, async (_, n) => (await fixture.device(presence, `user-${n}`, 'phone')).attach(1n)),
    );
    const refusals = outcomes.flatMap((each) => (each.status === 'rejected' ? [readRefusal(each.reason)] : []));
    expect(outcomes.length - refusals.length).toBeGreaterThanOrEqual(2);
    expect(refusals.length).toBeGreaterThan(3);
    for (const refusal of refusals)
      expect(refusal).toMatchObject({ reason: 'LIMIT_EXCEEDED', metadata: { scope: 'attaches' } });
    // Half a second apart, at two per second.
    const times = refusals.map(({ retryAfterMs }) => retryAfterMs ?? 0).sort((a, b) => a - b);
    expect((times.at(-1) ?? 0) - (times[0] ?? 0)).toBeGreaterThan((refusals.length - 2) * 250);
  });

  test('is not let in past the number that is being attached, whatever the services that are asked take', async () => {
    const answered = Promise.withResolvers<void>();
    const asked = Promise.withResolvers<void>();
    fixture.peers.beforeKeys = () => {
      asked.resolve();
      return answered.promise;
    };
    const presence = await fixture.gateway({ KEYTRAIL_ATTACHES_AT_ONCE: '1', KEYTRAIL_ATTACH_WAITING_MS: '60000' });
    const first = (await fixture.device(presence, 'alice', 'phone')).attach(1n);
    await asked.promise;
    const bob = await fixture.device(presence, 'bob', 'phone');
    await expect(bob.attach(1n)).rejects.toSatisfy((error) => {
      const { reason, metadata, retryAfterMs } = readRefusal(error);
      return reason === 'LIMIT_EXCEEDED' && metadata.scope === 'attaches' && (retryAfterMs ?? 0) > 0;
    });
    answered.resolve();
    await first;
    // Whoever is greeted is not being attached any more.
    await bob.attach(2n);
  });

  test('is told by a draining replica to come back one after the other', async () => {
    const presence = await fixture.gateway({ KEYTRAIL_ATTACHES_PER_SECOND: '10' });
    const devices = await Promise.all(
      Array.from({ length: 8 }, async (_, n) => (await fixture.device(presence, `user-${n}`, 'phone')).attach(1n)),
    );
    const told = devices.map(async ({ stream }) => {
      const { message } = (await stream.next()).value ?? { message: {} };
      return message.case === 'draining' ? (message.value as { reconnectAfterMs: number }).reconnectAfterMs : undefined;
    });
    await presence.stop();
    expect((await Promise.all(told)).sort((a = 0, b = 0) => a - b)).toEqual(
      devices.map((_, place) => 500 + place * 100),
    );
  });
});

describe('a heartbeat that meets another replica', () => {
  test('is taken while Redis has nothing of the device, and costs Redis nothing', async () => {
    const never = {
      KEYTRAIL_GATEWAY_RENEW_MS: '3600000',
      KEYTRAIL_GATEWAY_LEASE_MS: '3600000',
      KEYTRAIL_PRESENCE_SWEEP_MS: '3600000',
    };
    const [holder, other] = [await fixture.gateway(never), await fixture.gateway(never)];
    const { connectionId } = await (await fixture.device(holder, 'alice', 'phone')).attach(1n);
    const elsewhere = await fixture.device(other, 'alice', 'phone');
    await fixture.admin.flushall();
    await fixture.admin.config('RESETSTAT');
    const refused: string[] = [];
    for (let beat = 0; beat < 20; beat += 1)
      await elsewhere.presence
        .heartbeat({ connectionId })
        .catch((error: unknown) => refused.push(readRefusal(error).reason));
    expect(refused).toEqual([]);
    const commands = [...(await fixture.admin.info('commandstats')).matchAll(/cmdstat_([a-z|]+)/g)].map(
      ([, name]) => name,
    );
    expect(commands.filter((name) => !['config|resetstat', 'exists'].includes(name ?? '') && name !== 'info')).toEqual(
      [],
    );
  });

  test('is refused when nobody holds the connection, whether or not its gateway lives', async () => {
    const [first, second] = [await fixture.gateway(), await fixture.gateway()];
    const attached = await (await fixture.device(first, 'alice', 'phone')).attach(1n);
    const elsewhere = await fixture.device(second, 'alice', 'phone');
    attached.leave();
    await fixture.untilOnline(elsewhere, ['alice'], []);
    for (const connectionId of [attached.connectionId, randomUUID()]) {
      await expect(elsewhere.presence.heartbeat({ connectionId })).rejects.toSatisfy(
        (error) => readRefusal(error).reason === 'CONNECTION_UNKNOWN',
      );
    }
    // Nor may another device keep a connection that is not its own alive.
    const again = await (await fixture.device(first, 'alice', 'phone')).attach(2n);
    const laptop = await fixture.device(second, 'alice', 'laptop');
    await expect(laptop.presence.heartbeat({ connectionId: again.connectionId })).rejects.toSatisfy(
      (error) => readRefusal(error).reason === 'CONNECTION_UNKNOWN',
    );
  });
});
