import { randomUUID } from 'node:crypto';
import { fromBinary } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import { PrekeysDrainedSchema } from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc';
import { statement } from '@keytrail/storage';
import { connect } from '@nats-io/transport-node';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { TestDevice } from './device-keys.ts';
import {
  type IdentityKeysClient,
  type IdentityKeysUnderTest,
  newUser,
  startIdentityKeys,
  wires,
} from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

// One bundle an hour comes back: within a test, none.
const settings = {
  KEYTRAIL_CLAIMS_PER_CALLER: '1',
  KEYTRAIL_CLAIMS_PER_CALLER_BURST: '8',
  KEYTRAIL_CLAIMS_PER_TARGET: '1',
  KEYTRAIL_CLAIMS_PER_TARGET_BURST: '4',
  KEYTRAIL_CLAIMS_PER_PAIR: '1',
  KEYTRAIL_CLAIMS_PER_PAIR_BURST: '2',
  // A busy machine must not make Redis look away.
  KEYTRAIL_LIMITS_TIMEOUT_MS: '20000',
};
let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ replicas: 2, settings });
});
afterAll(() => service?.stop());

async function newDevice(deviceId = 'phone'): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId, oneTime: 20, kem: 20 })).device;
}

function asSomebody(options: { wire?: 'grpc' | 'web'; replica?: number } = {}) {
  return service.asRegistered({ userId: newUser(), deviceId: 'asking' }, options);
}

function claim(
  client: IdentityKeysClient,
  { userId, deviceId }: TestDevice,
  more: { claimId?: string; keyRequestId?: string } = {},
) {
  return client.claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId }], ...more });
}

/** The answer, or the reason why there is none. */
function answerOf<T>(call: Promise<T>): Promise<T | string> {
  return call.catch((error: unknown) => readRefusal(error).reason);
}

const unclaimed = statement(
  'test_unclaimed_left',
  'SELECT count(*) AS left FROM unclaimed_one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1 AND device_id = $2',
);
async function prekeysLeft({ userId, deviceId }: TestDevice): Promise<number> {
  const [row] = await service.db.query<{ left: bigint }>(unclaimed, [userId, deviceId]);
  return Number(row?.left);
}

describe('the limit per', () => {
  test.for(wires)(
    'caller counts bundles, over devices and replicas, and names itself and how long to wait (%s)',
    async (wire) => {
      const caller = newUser();
      const [phone, laptop] = await Promise.all([
        service.asRegistered({ userId: caller, deviceId: 'phone' }, { wire, replica: 0 }),
        service.asRegistered({ userId: caller, deviceId: 'laptop' }, { wire, replica: 1 }),
      ]);
      const targets = await Promise.all(Array.from({ length: 9 }, () => newDevice()));
      const refs = targets.map(({ userId, deviceId }) => ({ userId, deviceId }));
      await phone.claimPrekeyBundles({ claimId: randomUUID(), devices: refs.slice(0, 5) });
      // Four more do not fit, and take nothing: three do.
      const refusal = await refusalOf(laptop.claimPrekeyBundles({ claimId: randomUUID(), devices: refs.slice(5) }));
      expect(refusal).toMatchObject({
        code: Code.ResourceExhausted,
        reason: 'LIMIT_EXCEEDED',
        metadata: { limit: '1 bundles an hour, 8 at once', scope: 'caller' },
      });
      expect(refusal.metadata).not.toHaveProperty('user_id');
      expect(refusal.retryAfterMs).toBeGreaterThan(0);
      expect(refusal.retryAfterMs).toBeLessThanOrEqual(3_600_000);
      expect(await prekeysLeft(targets[5] as TestDevice)).toBe(20);
      await laptop.claimPrekeyBundles({ claimId: randomUUID(), devices: refs.slice(5, 8) });
    },
  );

  test('caller lets nobody ask for more at once than it ever gives: without retry-after', async () => {
    const devices = Array.from({ length: 9 }, () => ({ userId: newUser(), deviceId: 'phone' }));
    const refusal = await refusalOf((await asSomebody()).claimPrekeyBundles({ claimId: randomUUID(), devices }));
    expect(refusal).toMatchObject({ reason: 'LIMIT_EXCEEDED', metadata: { scope: 'caller' } });
    expect(refusal.retryAfterMs).toBeUndefined();
  });

  test('caller makes asking about users who do not exist cost as well', async () => {
    const client = await asSomebody();
    const ask = () =>
      client.claimPrekeyBundles({ claimId: randomUUID(), userIds: [newUser(), newUser(), newUser(), newUser()] });
    await ask();
    await ask();
    expect(await refusalOf(ask())).toMatchObject({ reason: 'LIMIT_EXCEEDED', metadata: { scope: 'caller' } });
  });

  test('pair keeps one user from emptying the pool of another, whichever of its devices asks', async () => {
    const target = await newDevice();
    const caller = newUser();
    service.peers.share(caller, target.userId);
    const [phone, laptop] = (await Promise.all(
      ['phone', 'laptop'].map((deviceId) => service.asRegistered({ userId: caller, deviceId })),
    )) as [IdentityKeysClient, IdentityKeysClient];
    await claim(phone, target);
    await claim(laptop, target);
    expect(await refusalOf(claim(phone, target))).toMatchObject({
      reason: 'LIMIT_EXCEEDED',
      metadata: { scope: 'pair', user_id: target.userId, device_id: 'phone' },
    });
    expect(await prekeysLeft(target)).toBe(18);
  });

  test('target keeps strangers together from emptying a pool, on all replicas; who shares a conversation is none of them', async () => {
    const target = await newDevice();
    for (let i = 0; i < 4; i++) await claim(await asSomebody({ replica: i % 2 }), target);
    const refusal = await refusalOf(claim(await asSomebody(), target));
    expect(refusal).toMatchObject({
      reason: 'LIMIT_EXCEEDED',
      metadata: { limit: '1 bundles an hour, 4 at once', scope: 'target', user_id: target.userId, device_id: 'phone' },
    });
    expect(refusal.retryAfterMs).toBeGreaterThan(0);
    const friend = newUser();
    service.peers.share(friend, target.userId);
    const { results } = await claim(await service.asRegistered({ userId: friend, deviceId: 'phone' }), target);
    expect(results[0]?.bundle).toBeDefined();
    expect(await prekeysLeft(target)).toBe(15);
  });

  test('target is not looked up for the own user, and services are not limited', async () => {
    const target = await newDevice();
    const own = await service.asRegistered({ userId: target.userId, deviceId: 'laptop' });
    for (let i = 0; i < 5; i++) await claim(own, target);
    const session = service.asService('session');
    for (let i = 0; i < 10; i++) await claim(session, target);
    expect(await prekeysLeft(target)).toBe(5);
  });
});

test('forty strangers at once, on two replicas, get as many bundles as the target gives', async () => {
  const target = await newDevice();
  const clients = await Promise.all(Array.from({ length: 40 }, (_, i) => asSomebody({ replica: i % 2 })));
  const outcomes = await Promise.allSettled(clients.map((client) => claim(client, target)));
  expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(4);
  expect(await prekeysLeft(target)).toBe(16);
});

describe('a claim tried again', () => {
  test('costs nothing, and is answered when the limits are reached', async () => {
    const client = await asSomebody();
    const [a, b] = [await newDevice(), await newDevice()];
    const claimId = randomUUID();
    const first = await claim(client, a, { claimId });
    for (let i = 0; i < 10; i++) expect(await answerOf(claim(client, a, { claimId }))).toEqual(first);
    const users = { claimId: randomUUID(), userIds: [a.userId] };
    const byUser = await answerOf(client.claimPrekeyBundles(users));
    expect(byUser).toMatchObject({ users: [{ userId: a.userId }] });
    for (let i = 0; i < 10; i++) expect(await answerOf(client.claimPrekeyBundles(users))).toEqual(byUser);
    expect(await refusalOf(claim(client, a))).toMatchObject({ metadata: { scope: 'pair' } });
    expect(await answerOf(claim(client, a, { claimId }))).toEqual(first);
    expect(await answerOf(client.claimPrekeyBundles(users))).toEqual(byUser);
    // Of eight bundles, two were spent.
    for (const target of [b, b]) await claim(client, target);
    const rest = await Promise.all(Array.from({ length: 4 }, () => newDevice()));
    await client.claimPrekeyBundles({
      claimId: randomUUID(),
      devices: rest.map(({ userId, deviceId }) => ({ userId, deviceId })),
    });
    expect(await refusalOf(claim(client, await newDevice()))).toMatchObject({ metadata: { scope: 'caller' } });
    expect(await prekeysLeft(a)).toBe(18);
  });

  test('many times at once costs what one costs', async () => {
    const target = await newDevice();
    const caller = { userId: newUser(), deviceId: 'asking' };
    const clients = await Promise.all([0, 1].map((replica) => service.asRegistered(caller, { replica })));
    const claimId = randomUUID();
    const [first] = await Promise.all(clients.map((client) => claim(client, target, { claimId })));
    for (const client of clients) expect(await claim(client, target, { claimId })).toEqual(first);
    await claim(clients[0] as IdentityKeysClient, target);
    expect(await refusalOf(claim(clients[1] as IdentityKeysClient, target))).toMatchObject({
      metadata: { scope: 'pair' },
    });
  });

  test('under an id that was used for other devices costs nothing', async () => {
    const client = await asSomebody();
    const [a, b] = [await newDevice(), await newDevice()];
    const claimId = randomUUID();
    await claim(client, a, { claimId });
    for (let i = 0; i < 3; i++)
      expect(await refusalOf(claim(client, b, { claimId }))).toMatchObject({ reason: 'REQUEST_ID_REUSED' });
    await claim(client, b);
    await claim(client, b);
  });
});

describe('a claim that serves a key request', () => {
  async function exhausted() {
    const target = await newDevice();
    const holder = { userId: newUser(), deviceId: 'holder' };
    const client = await service.asRegistered(holder);
    await claim(client, target);
    await claim(client, target);
    const keyRequestId = randomUUID();
    const requester = { userId: target.userId, deviceId: target.deviceId };
    const offeredTo = `${holder.userId}/${holder.deviceId}`;
    return { target, holder, client, keyRequestId, requester, offeredTo };
  }

  test('is answered when the limits are reached', async () => {
    const { target, client, keyRequestId, requester, offeredTo } = await exhausted();
    service.peers.keyRequests.set(keyRequestId, { requester, offeredTo });
    expect((await claim(client, target, { keyRequestId })).results[0]?.bundle).toBeDefined();
  });

  test('is not exempt when the request is not open or offered to somebody else, by another device, or for another one', async () => {
    const { target, holder, client, keyRequestId, requester, offeredTo } = await exhausted();
    const limited = { reason: 'LIMIT_EXCEEDED', metadata: { scope: 'pair' } };
    expect(await refusalOf(claim(client, target, { keyRequestId }))).toMatchObject(limited);
    service.peers.keyRequests.set(keyRequestId, { requester, offeredTo: `${newUser()}/holder` });
    expect(await refusalOf(claim(client, target, { keyRequestId }))).toMatchObject(limited);
    service.peers.keyRequests.set(keyRequestId, { requester: { ...requester, deviceId: 'laptop' }, offeredTo });
    expect(await refusalOf(claim(client, target, { keyRequestId }))).toMatchObject(limited);
    service.peers.keyRequests.set(keyRequestId, { requester, offeredTo });
    const other = await service.asRegistered({ userId: holder.userId, deviceId: 'another' });
    expect(await refusalOf(claim(other, target, { keyRequestId }))).toMatchObject(limited);
    const devices = [requester, { userId: newUser(), deviceId: 'phone' }];
    expect(await refusalOf(client.claimPrekeyBundles({ claimId: randomUUID(), devices, keyRequestId }))).toMatchObject(
      limited,
    );
  });

  test('is exempt three times for each holder, with free repetitions, at once or one after the other, however the request is spelt', async () => {
    const { target, client, keyRequestId, requester, offeredTo } = await exhausted();
    service.peers.keyRequests.set(keyRequestId, { requester, offeredTo });
    service.peers.keyRequests.set(keyRequestId.toUpperCase(), { requester, offeredTo });
    const claimIds = Array.from({ length: 8 }, () => randomUUID());
    const before = await prekeysLeft(target);
    const answers = await Promise.all(
      claimIds.map((claimId, i) =>
        answerOf(claim(client, target, { claimId, keyRequestId: i % 2 ? keyRequestId : keyRequestId.toUpperCase() })),
      ),
    );
    const answered = claimIds.filter((_, i) => answers[i] !== 'LIMIT_EXCEEDED');
    expect([answered.length, before - (await prekeysLeft(target))]).toEqual([3, 3]);
    for (const claimId of answered) await claim(client, target, { claimId, keyRequestId });
    expect(await answerOf(claim(client, target, { keyRequestId }))).toBe('LIMIT_EXCEEDED');
    const another = randomUUID();
    service.peers.keyRequests.set(another, { requester, offeredTo });
    expect((await claim(client, target, { keyRequestId: another })).results[0]?.bundle).toBeDefined();
  });

  test('costs no exemption when it is a repetition on its way', async () => {
    const { target, client, keyRequestId, requester, offeredTo } = await exhausted();
    service.peers.keyRequests.set(keyRequestId, { requester, offeredTo });
    const claimId = randomUUID();
    await Promise.all(Array.from({ length: 3 }, () => claim(client, target, { claimId, keyRequestId })));
    await claim(client, target, { keyRequestId });
    await claim(client, target, { keyRequestId });
    expect(await answerOf(claim(client, target, { keyRequestId }))).toBe('LIMIT_EXCEEDED');
  });

  test('asks session only when it would be refused', async () => {
    const target = await newDevice();
    service.peers.offersChecked = 0;
    await claim(await asSomebody(), target, { keyRequestId: randomUUID() });
    expect(service.peers.offersChecked).toBe(0);
  });
});

test('a drain is an event, once per device over all replicas, whether by the limit or by an empty pool', async () => {
  const drained: { userId: string; limited: boolean }[] = [];
  const nats = await connect({ servers: service.natsUrl });
  const subscription = nats.subscribe('keytrail.identitykeys.v1.prekeys_drained', {
    callback: (_, message) => {
      const { userId, limited } = fromBinary(PrekeysDrainedSchema, message.data);
      drained.push({ userId, limited });
    },
  });
  await nats.flush();
  try {
    const limited = await newDevice();
    for (let i = 0; i < 4; i++) await claim(await asSomebody(), limited);
    for (let i = 0; i < 6; i++) await refusalOf(claim(await asSomebody({ replica: i % 2 }), limited));
    const { device: empty } = await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 0, kem: 0 });
    for (let i = 0; i < 4; i++) await claim(await asSomebody({ replica: i % 2 }), empty);
    // A later drain comes after everything that the earlier ones could have told.
    const { device: last } = await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 0, kem: 0 });
    await claim(await asSomebody(), last);
    await vi.waitFor(() => expect(drained.map(({ userId }) => userId)).toContain(last.userId), 20_000);
    const of = ({ userId }: TestDevice) => drained.filter((each) => each.userId === userId).map((each) => each.limited);
    expect([of(limited), of(empty), of(last)]).toEqual([[true], [false], [false]]);
  } finally {
    subscription.unsubscribe();
    await nats.close();
  }
});

describe.each([
  ['open', 'the limits of the process hold'],
  ['closed', 'claims are refused, and recorded ones still answered'],
] as const)('while Redis is away (%s)', (without, what) => {
  test(`${what}; when it is back, it counts again`, async () => {
    const own = await startIdentityKeys({ settings: { ...settings, KEYTRAIL_LIMITS_WITHOUT_REDIS: without } });
    try {
      const { device } = await own.register({ userId: newUser(), deviceId: 'phone', oneTime: 20, kem: 20 });
      const client = await own.asRegistered({ userId: newUser(), deviceId: 'asking' });
      const claimId = randomUUID();
      const first = await claim(client, device, { claimId });
      await own.redis.kill('SIGKILL');
      const away = await own.asRegistered({ userId: newUser(), deviceId: 'asking' });
      if (without === 'open') {
        await claim(away, device);
        await claim(away, device);
        expect(await refusalOf(claim(away, device))).toMatchObject({
          reason: 'LIMIT_EXCEEDED',
          metadata: { scope: 'pair' },
        });
      } else {
        expect(await refusalOf(claim(away, device))).toMatchObject({
          code: Code.Unavailable,
          reason: 'PEER_UNAVAILABLE',
          metadata: { peer: 'redis' },
          retryAfterMs: 1_000,
        });
      }
      expect(await answerOf(claim(client, device, { claimId }))).toEqual(first);
      await own.redis.restart?.();
      // Redis came back empty: somebody new is counted there, and no more by the process.
      await vi.waitFor(
        async () => {
          const asked = await own.asRegistered({ userId: newUser(), deviceId: 'asking' });
          await claim(asked, (await own.register({ userId: newUser(), deviceId: 'phone' })).device);
          expect(await own.redisKeys()).toBeGreaterThan(0);
        },
        { timeout: 20_000, interval: 100 },
      );
    } finally {
      await own.stop();
    }
  });
});

test('a process starts and serves claims while Redis has never been there', async () => {
  const own = await startIdentityKeys({ settings: { ...settings, KEYTRAIL_REDIS_URL: 'redis://127.0.0.1:1' } });
  try {
    const { device } = await own.register({ userId: newUser(), deviceId: 'phone' });
    const client = await own.asRegistered({ userId: newUser(), deviceId: 'asking' });
    await claim(client, device);
    await claim(client, device);
    expect(await refusalOf(claim(client, device))).toMatchObject({
      reason: 'LIMIT_EXCEEDED',
      metadata: { scope: 'pair' },
    });
  } finally {
    await own.stop();
  }
});

test('a Redis that hangs costs one wait, not one per claim, and nobody an answer', async () => {
  const own = await startIdentityKeys({ settings: { ...settings, KEYTRAIL_LIMITS_TIMEOUT_MS: '300' } });
  try {
    const { device } = await own.register({ userId: newUser(), deviceId: 'phone' });
    await own.redis.kill('SIGSTOP');
    const client = await own.asRegistered({ userId: newUser(), deviceId: 'asking' });
    expect((await claim(client, device)).results[0]?.bundle).toBeDefined();
    expect((await claim(client, device)).results[0]?.bundle).toBeDefined();
    expect(await refusalOf(claim(client, device))).toMatchObject({ metadata: { scope: 'pair' } });
  } finally {
    await own.redis.kill('SIGCONT');
    await own.stop();
  }
});
