import { randomUUID } from 'node:crypto';
import { toBinary } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import { GetDevicesResponseSchema, ListDeviceLogResponseSchema } from '@keytrail/contracts';
import type { Database } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createStandings } from '../src/standings.ts';
import { makeDevice } from './device-keys.ts';
import {
  type IdentityKeysClient,
  type IdentityKeysUnderTest,
  newUser,
  startIdentityKeys,
  wires,
} from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

async function newDevice(deviceId = 'phone') {
  return (await service.register({ userId: newUser(), deviceId })).device;
}

type Ref = { readonly userId: string; readonly deviceId: string };

function claim(client: IdentityKeysClient, { userId, deviceId }: Ref) {
  return client.claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId }] });
}

async function prekeysLeft({ userId }: Ref): Promise<number> {
  const { rows } = await service.db.pool.query<{ left: bigint }>(
    `SELECT count(*) AS left FROM unclaimed_one_time_prekeys JOIN devices USING (device_number) WHERE user_id = $1`,
    [userId],
  );
  return Number(rows[0]?.left);
}

/** Everything that tells of others. */
const readings: readonly [string, (client: IdentityKeysClient, device: Ref) => Promise<unknown>][] = [
  ['claims by device', claim],
  ['claims by user', (client, { userId }) => client.claimPrekeyBundles({ claimId: randomUUID(), userIds: [userId] })],
  ['reads device lists', (client, { userId }) => client.getDevices({ userIds: [userId] })],
  ['reads device logs', (client, { userId }) => client.listDeviceLog({ users: [{ userId }] })],
];

describe('a revoked device', () => {
  test.for(wires)(
    'claims nothing and reads no lists, also not of those with whom its user shares (%s)',
    async (wire) => {
      const [stolen, friend] = [await newDevice(), await newDevice()];
      service.peers.share(stolen.userId, friend.userId);
      await service.revoke(stolen.userId, 'phone');
      const client = await service.asDevice(stolen, { wire });
      for (const [what, read] of readings)
        for (const about of [friend, stolen])
          expect(await refusalOf(read(client, about)), what).toMatchObject({
            code: Code.FailedPrecondition,
            reason: 'DEVICE_REVOKED',
            metadata: { device_id: 'phone', revoked_at: expect.any(String) },
          });
      expect(await prekeysLeft(friend)).toBe(3);
    },
  );

  test('that called before is noticed when its standing is no longer remembered', async () => {
    const [stolen, friend] = [await newDevice(), await newDevice()];
    const client = await service.asDevice(stolen);
    await claim(client, friend);
    await service.revoke(stolen.userId, 'phone');
    await expect
      .poll(
        () =>
          claim(client, friend).then(
            () => 'a bundle',
            () => 'refused',
          ),
        { timeout: 30_000 },
      )
      .toBe('refused');
    expect(await refusalOf(claim(client, friend))).toMatchObject({ reason: 'DEVICE_REVOKED' });
  });
});

describe('a device that is not registered', () => {
  test.for(wires)('claims nothing (%s)', async (wire) => {
    const [own, other] = [await newDevice(), await newDevice()];
    service.peers.share(own.userId, other.userId);
    const client = await service.asDevice({ userId: own.userId, deviceId: 'ghost' }, { wire });
    for (const [what, read] of readings.slice(0, 2))
      for (const from of [other, own])
        expect(await refusalOf(read(client, from)), what).toMatchObject({
          code: Code.FailedPrecondition,
          reason: 'DEVICE_NOT_REGISTERED',
          metadata: { device_id: 'ghost' },
        });
    expect([await prekeysLeft(own), await prekeysLeft(other)]).toEqual([3, 3]);
  });

  test('reads the list and the log of its own user, and of nobody else', async () => {
    const [own, friend] = [await newDevice(), await newDevice()];
    service.peers.share(own.userId, friend.userId);
    const client = await service.asDevice({ userId: own.userId, deviceId: 'to-be-linked' });
    const [mine] = (await client.getDevices({ userIds: [own.userId] })).deviceLists;
    expect(mine?.devices.map(({ deviceId }) => deviceId)).toEqual(['phone']);
    const [log] = (await client.listDeviceLog({ users: [{ userId: own.userId }] })).deviceLogs;
    expect(log?.entries).toHaveLength(1);
    const about = async (userId: string) => {
      const lists = await client.getDevices({ userIds: [userId] });
      const logs = await client.listDeviceLog({ users: [{ userId }] });
      for (const each of [...lists.deviceLists, ...logs.deviceLogs]) each.userId = '';
      return [toBinary(GetDevicesResponseSchema, lists), toBinary(ListDeviceLogResponseSchema, logs)];
    };
    expect(await about(friend.userId)).toEqual(await about(newUser()));
  });

  test('claims as soon as it is registered, although it was refused a moment before', async () => {
    const other = await newDevice();
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asDevice(device);
    expect(await refusalOf(claim(client, other))).toMatchObject({ reason: 'DEVICE_NOT_REGISTERED' });
    await client.registerDevice(registration);
    expect((await claim(client, other)).results[0]?.bundle).toBeDefined();
  });
});

describe('the standing of a caller', () => {
  /** Counts what the database is asked; an answer waits for `beforeAnswering`. */
  function counted(beforeAnswering: () => Promise<unknown> = async () => {}) {
    const asked = { times: 0 };
    const query: Database['query'] = async (statement, values) => {
      asked.times += 1;
      const rows = await service.db.pipelined.query<never>(statement, values);
      await beforeAnswering();
      return rows;
    };
    return { asked, standings: createStandings({ ...service.db, pipelined: { query } }, { rememberedMs: 3_600_000 }) };
  }

  test('is asked for once by calls at the same time and later ones', async () => {
    const device = await newDevice();
    const { asked, standings } = counted();
    const answers = await Promise.all(Array.from({ length: 20 }, () => standings.of(device)));
    expect(new Set(answers.map(({ registered }) => registered))).toEqual(new Set([true]));
    await standings.of(device);
    expect(asked.times).toBe(1);
  });

  test('is never a no of before: who joins a look-up that came too early looks again', async () => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const mayAnswer = Promise.withResolvers<void>();
    const looked = Promise.withResolvers<void>();
    const { standings } = counted(() => {
      looked.resolve();
      return mayAnswer.promise;
    });
    const early = standings.of(device);
    await looked.promise;
    await (await service.asDevice(device)).registerDevice(registration);
    const late = standings.of(device);
    mayAnswer.resolve();
    expect([(await early).registered, (await late).registered]).toEqual([false, true]);
  });

  test('is looked up again after the database could not be asked', async () => {
    const device = await newDevice();
    let fails = true;
    const { standings } = counted(async () => {
      if (fails) throw new Error('no connection');
    });
    await expect(standings.of(device)).rejects.toThrow('no connection');
    fails = false;
    expect(await standings.of(device)).toMatchObject({ registered: true, revokedAt: undefined });
  });
});
