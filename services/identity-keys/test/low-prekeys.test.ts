import { randomUUID } from 'node:crypto';
import { fromBinary } from '@bufbuild/protobuf';
import { NotificationKind, NotificationRequestedSchema, PrekeysLowSchema } from '@keytrail/contracts';
import { createKemPrekey, createSignedPrekey } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { connect } from '@nats-io/transport-node';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { type PrekeyWatch, remindOfPrekeys, sweepPrekeys } from '../src/jobs/watch-prekeys.ts';
import { makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';

const hour = 3_600_000;
const day = 24 * hour;

let service: IdentityKeysUnderTest;
let watch: PrekeyWatch;
beforeAll(async () => {
  service = await startIdentityKeys({ replicas: 2, settings: { KEYTRAIL_LOW_PREKEYS_BELOW: '3' } });
  watch = {
    db: service.db,
    limits: {
      lowBelow: 3,
      refillTo: 10,
      signedMaxAgeMs: 7 * day,
      lastResortMaxAgeMs: 30 * day,
      oneTimeMaxAgeMs: 90 * day,
      graceMs: 14 * day,
    },
    reminderMs: hour,
  };
});
afterAll(() => service?.stop());

// So that each test has its own devices alone to look at.
beforeEach(async () => {
  await service.db.pool.query(
    'UPDATE prekey_sweep SET after_device_number = (SELECT coalesce(max(device_number), 0) FROM devices)',
  );
  await service.db.pool.query('DELETE FROM low_prekey_notices');
});

async function newDevice(oneTime = 5, kem = oneTime): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone', oneTime, kem })).device;
}

const numberOf = 'device_number = (SELECT device_number FROM devices WHERE user_id = $1)';

async function age(table: string, { userId }: TestDevice, by: string): Promise<void> {
  await service.db.pool.query(`UPDATE ${table} SET added_at = added_at - interval '${by}' WHERE ${numberOf}`, [userId]);
}

async function isTold({ userId }: TestDevice): Promise<boolean> {
  return (await service.db.pool.query(`SELECT FROM low_prekey_notices WHERE ${numberOf}`, [userId])).rows.length > 0;
}

/** As if the device had been told two hours ago. */
async function letAnHourPass(): Promise<void> {
  await service.db.pool.query("UPDATE low_prekey_notices SET noticed_at = noticed_at - interval '2 hours'");
}

async function claim({ userId, deviceId }: TestDevice): Promise<void> {
  await service.asService('session').claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId }] });
}

async function refill(device: TestDevice, count: number): Promise<void> {
  const first = 1000 + Math.floor(Math.random() * 1_000_000);
  await (await service.asDevice(device)).replenishPrekeys({
    requestId: randomUUID(),
    oneTimePrekeys: makeOneTimePrekeys(first, count),
    oneTimeKemPrekeys: makeKemPrekeys(device, first, count),
  });
}

async function statusOf(device: TestDevice) {
  return (await (await service.asDevice(device)).getPrekeyStatus({})).status;
}

describe('a device whose pool is low', () => {
  test('is reminded, application and device, until it has refilled, and not before the reminder time', async () => {
    const device = await newDevice(3);
    await claim(device);
    expect(await isTold(device)).toBe(true);
    expect(await remindOfPrekeys(watch)).toBe(0);
    const connection = await connect({ servers: new URL(service.natsUrl).host });
    const low = connection.subscribe('keytrail.identitykeys.v1.prekeys_low', { max: 1 });
    const notified = connection.subscribe('keytrail.identitykeys.v1.notification_requested', { max: 1 });
    await connection.flush();
    await letAnHourPass();
    expect(await remindOfPrekeys(watch)).toBe(1);
    for await (const { data } of low)
      expect(fromBinary(PrekeysLowSchema, data)).toMatchObject({ userId: device.userId, oneTime: 2, kem: 2 });
    for await (const { data } of notified) {
      const { devices, notification } = fromBinary(NotificationRequestedSchema, data);
      expect(devices).toMatchObject([{ userId: device.userId, deviceId: 'phone' }]);
      expect(notification?.kind).toBe(NotificationKind.PREKEYS_LOW);
    }
    await connection.close();
    await letAnHourPass();
    expect(await remindOfPrekeys(watch)).toBe(1);
    await refill(device, 1);
    expect(await isTold(device)).toBe(false);
    await letAnHourPass();
    expect(await remindOfPrekeys(watch)).toBe(0);
  });

  test('is still reminded when it refilled one pool alone', async () => {
    const device = await newDevice(2);
    await sweepPrekeys(watch);
    const client = await service.asDevice(device);
    await client.replenishPrekeys({ requestId: randomUUID(), oneTimePrekeys: makeOneTimePrekeys(50, 9) });
    await letAnHourPass();
    expect(await remindOfPrekeys(watch)).toBe(1);
  });

  test('is reminded by one of six replicas', async () => {
    const devices = await Promise.all([newDevice(1), newDevice(1), newDevice(1)]);
    for (const device of devices) await claim(device);
    await letAnHourPass();
    const reminders = await Promise.all(Array.from({ length: 6 }, () => remindOfPrekeys(watch)));
    expect(reminders.reduce((sum, count) => sum + count)).toBe(devices.length);
  });

  test('is not reminded a second time by a replica that comes while the first is at it', async () => {
    const device = await newDevice(1);
    await claim(device);
    await letAnHourPass();
    const first = await service.db.pool.connect();
    try {
      await first.query('BEGIN');
      await first.query('UPDATE low_prekey_notices SET noticed_at = now()');
      let over = false;
      const second = remindOfPrekeys(watch).finally(() => {
        over = true;
      });
      await vi.waitFor(
        async () => {
          const { rowCount } = await service.db.pool.query(
            `SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`,
          );
          expect(over || rowCount !== 0).toBe(true);
        },
        { timeout: 10_000, interval: 20 },
      );
      await first.query('COMMIT');
      expect(await second).toBe(0);
    } finally {
      await first.query('ROLLBACK');
      first.release();
    }
  });

  test('is found though the claim that should have told it crashed before it did', async () => {
    const device = await newDevice(3);
    await claim(device);
    await service.db.pool.query(`DELETE FROM low_prekey_notices WHERE ${numberOf}`, [device.userId]);
    const sweeps = await Promise.all(Array.from({ length: 4 }, () => sweepPrekeys(watch)));
    expect(sweeps).toHaveLength(4);
    expect(await isTold(device)).toBe(true);
  });

  test('is no longer reminded once it is revoked', async () => {
    const device = await newDevice(1);
    await sweepPrekeys(watch);
    expect(await isTold(device)).toBe(true);
    await service.revoke(device.userId);
    await letAnHourPass();
    expect(await remindOfPrekeys(watch)).toBe(0);
    expect(await isTold(device)).toBe(false);
  });
});

describe('a device with filled pools', () => {
  test('is told when its signed prekey is overdue, until it has rotated', async () => {
    const device = await newDevice();
    await age('signed_prekeys', device, '8 days');
    await sweepPrekeys(watch);
    expect(await isTold(device)).toBe(true);
    await refill(device, 1);
    expect(await isTold(device)).toBe(true);
    const signedPrekey = createSignedPrekey(nodePrimitives, device, 2).upload;
    await (await service.asDevice(device)).rotateSignedPrekey({ requestId: randomUUID(), signedPrekey });
    expect(await isTold(device)).toBe(false);
  });

  test('is told when its last-resort prekey was handed out, once it has one-time prekeys again', async () => {
    const device = await newDevice(0);
    await claim(device);
    await refill(device, 5);
    expect(await isTold(device)).toBe(true);
    const lastResortPrekey = createKemPrekey(nodePrimitives, device, 9, 'kem-last-resort').upload;
    await (await service.asDevice(device)).rotateSignedPrekey({ requestId: randomUUID(), lastResortPrekey });
    expect(await isTold(device)).toBe(false);
  });

  test('and nothing overdue is told nothing', async () => {
    const device = await newDevice();
    await sweepPrekeys(watch);
    expect(await isTold(device)).toBe(false);
  });
});

describe('the sweep', () => {
  test('looks at all devices page by page, and begins anew after the last', async () => {
    const devices = [await newDevice(1), await newDevice(), await newDevice(1)];
    for (let page = 0; page < 3; page++) await sweepPrekeys(watch, 1);
    expect(await Promise.all(devices.map(isTold))).toEqual([true, false, true]);
    await sweepPrekeys(watch, 1);
    const { rows } = await service.db.pool.query('SELECT after_device_number FROM prekey_sweep');
    expect(rows).toEqual([{ after_device_number: 0n }]);
  });

  test('that fails midway moves no further: the same page is looked at again', async () => {
    const device = await newDevice(1);
    await service.db.pool.query(
      `CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the outbox is full'; END $$;
       CREATE TRIGGER fail BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION fail()`,
    );
    await expect(sweepPrekeys(watch)).rejects.toThrow('outbox');
    await service.db.pool.query('DROP FUNCTION fail CASCADE');
    expect(await isTold(device)).toBe(false);
    await sweepPrekeys(watch);
    expect(await isTold(device)).toBe(true);
  });
});

describe('one-time prekeys that nobody claimed for ninety days', () => {
  test('are retired, counted, and make the device be told', async () => {
    const device = await newDevice(5);
    await age('unclaimed_one_time_prekeys', device, '91 days');
    await refill(device, 2);
    expect(await sweepPrekeys(watch)).toEqual({ oneTime: 5, kem: 0 });
    expect(await statusOf(device)).toMatchObject({
      counts: { oneTime: 2, kem: 7 },
      retired: { oneTime: 5, kem: 0 },
      overAged: { oneTime: 0, kem: 0 },
      refillDue: true,
    });
    expect(await isTold(device)).toBe(true);
  });

  test('and are held by a claim are left to it', async () => {
    const device = await newDevice(4);
    await age('unclaimed_one_time_prekeys', device, '91 days');
    const claiming = await service.db.pool.connect();
    await claiming.query('BEGIN');
    await claiming.query(`SELECT FROM unclaimed_one_time_prekeys WHERE seq = 1 AND ${numberOf} FOR UPDATE`, [
      device.userId,
    ]);
    expect(await sweepPrekeys(watch)).toEqual({ oneTime: 3, kem: 0 });
    await claiming.query('ROLLBACK');
    claiming.release();
    expect(await statusOf(device)).toMatchObject({ counts: { oneTime: 1, kem: 4 }, retired: { oneTime: 3 } });
  });

  test('are either claimed or retired while claimers are at them, each once', async () => {
    const device = await newDevice(60);
    await age('unclaimed_one_time_prekeys', device, '91 days');
    await age('unclaimed_one_time_kem_prekeys', device, '91 days');
    const claimed: number[] = [];
    const claimers = Array.from({ length: 10 }, async (_, i) => {
      for (let n = 0; n < 4; n++) {
        const request = { claimId: randomUUID(), devices: [{ userId: device.userId, deviceId: device.deviceId }] };
        const { results } = await service.asService('session', { replica: i % 2 }).claimPrekeyBundles(request);
        const taken = results[0]?.bundle?.oneTimePrekey?.keyId;
        if (taken !== undefined) claimed.push(taken);
      }
    });
    for (const sweeping = claimers.map(() => 0); sweeping.length > 0; sweeping.pop()) {
      await service.db.pool.query('UPDATE prekey_sweep SET after_device_number = 0');
      await sweepPrekeys(watch);
    }
    await Promise.all(claimers);
    await service.db.pool.query('UPDATE prekey_sweep SET after_device_number = 0');
    await sweepPrekeys(watch);
    const status = await statusOf(device);
    expect(new Set(claimed).size).toBe(claimed.length);
    expect(claimed.length + (status?.retired?.oneTime ?? 0)).toBe(60);
    expect(status).toMatchObject({ counts: { oneTime: 0, kem: 0 } });
  });
});
