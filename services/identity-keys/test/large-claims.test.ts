import { randomUUID } from 'node:crypto';
import { PrekeyKind } from '@keytrail/contracts';
import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type SeededDevice, seedDevices } from '../../../test/bench/seed-devices.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
let devices: SeededDevice[];
beforeAll(async () => {
  // Limits as they are by default: a group of 1,500 devices can be claimed from at once.
  service = await startIdentityKeys({
    settings: {
      KEYTRAIL_MAX_MESSAGE_BYTES: '65536',
      KEYTRAIL_CLAIMS_PER_CALLER: '6000',
      KEYTRAIL_CLAIMS_PER_TARGET: '240',
      KEYTRAIL_CLAIMS_PER_PAIR: '60',
    },
  });
  const sql = await service.db.pool.connect();
  try {
    devices = await seedDevices(sql as unknown as Client, 'large', 1_500, 4);
  } finally {
    sql.release();
  }
}, 120_000);
afterAll(() => service?.stop());

describe('a claim of 1,500 devices, where other calls may have 64 KiB', () => {
  test.for(wires)('is answered whole, each device with keys of its own (%s)', async (wire) => {
    const client = await service.asRegistered({ userId: newUser(), deviceId: 'asking' }, { wire });
    const { results } = await client.claimPrekeyBundles({ claimId: randomUUID(), devices });
    expect(results).toHaveLength(1_500);
    for (const [i, { device, bundle }] of results.entries()) {
      expect([device?.userId, device?.deviceId]).toEqual([devices[i]?.userId, devices[i]?.deviceId]);
      expect(bundle?.oneTimePrekey).toBeDefined();
      expect(bundle?.kemPrekeyKind).toBe(PrekeyKind.ONE_TIME);
    }
  });

  test('is answered whole by users too', async () => {
    const client = await service.asRegistered({ userId: newUser(), deviceId: 'asking' });
    const userIds = [...new Set(devices.map(({ userId }) => userId))];
    const { results, users } = await client.claimPrekeyBundles({ claimId: randomUUID(), userIds });
    expect(users).toHaveLength(500);
    expect(results.filter(({ bundle }) => bundle?.kemPrekeyKind === PrekeyKind.ONE_TIME)).toHaveLength(1_500);
  });

  test('is answered in JSON as well', async () => {
    const client = await service.asRegistered({ userId: newUser(), deviceId: 'asking' }, { wire: 'web', json: true });
    const { results } = await client.claimPrekeyBundles({ claimId: randomUUID(), devices });
    expect(results.filter(({ bundle }) => bundle !== undefined)).toHaveLength(1_500);
  });
});

test.for(wires)('other calls keep the bound of all (%s)', async (wire) => {
  const client = await service.asRegistered({ userId: newUser(), deviceId: 'asking' }, { wire });
  const userIds = Array.from({ length: 1_000 }, (_, i) => `${i}`.padStart(120, 'x'));
  expect(await refusalOf(client.getDevices({ userIds }))).toMatchObject({
    reason: 'LIMIT_EXCEEDED',
    metadata: { scope: 'request', limit: '65536 bytes' },
  });
});

test.for(wires)('requests and answers of claims have bounds of their own (%s)', async (wire) => {
  const small = await startIdentityKeys({
    settings: { KEYTRAIL_CLAIM_REQUEST_BYTES: '2000', KEYTRAIL_CLAIM_ANSWER_BYTES: '3000' },
  });
  try {
    const { device } = await small.register({ userId: newUser(), deviceId: 'phone' });
    const { userId } = device;
    await small.register({ userId, deviceId: 'laptop', rootKey: device.rootKey });
    const client = await small.asRegistered({ userId: newUser(), deviceId: 'asking' }, { wire });
    const one = await client.claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId: 'phone' }] });
    expect(one.results).toHaveLength(1);
    const many = Array.from({ length: 100 }, (_, i) => ({ userId, deviceId: `device-${i}` }));
    expect(await refusalOf(client.claimPrekeyBundles({ claimId: randomUUID(), devices: many }))).toMatchObject({
      reason: 'LIMIT_EXCEEDED',
      metadata: { scope: 'request', limit: '2000 bytes' },
    });
    expect(await refusalOf(client.claimPrekeyBundles({ claimId: randomUUID(), userIds: [userId] }))).toMatchObject({
      reason: 'LIMIT_EXCEEDED',
      metadata: { scope: 'answer', limit: '3000 bytes' },
    });
  } finally {
    await small.stop();
  }
});
