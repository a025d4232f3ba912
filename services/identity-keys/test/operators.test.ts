import { randomUUID } from 'node:crypto';
import { toJsonString } from '@bufbuild/protobuf';
import { FindDevicesResponseSchema } from '@keytrail/contracts';
import { pseudonym } from '@keytrail/telemetry';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

const keySet = ['identity_key', 'signing_key', 'certificate', 'signed_prekey', 'last_resort_prekey'];
const trace = expect.stringMatching(/^[0-9a-f]{32}$/);

async function twoDevices(): Promise<readonly [TestDevice, TestDevice]> {
  const userId = newUser();
  const { device: phone } = await service.register({ userId, deviceId: 'phone', oneTime: 4, kem: 3 });
  const { device: tablet } = await service.register({
    userId,
    deviceId: 'tablet',
    rootKey: phone.rootKey,
    oneTime: 2,
    kem: 2,
  });
  return [phone, tablet];
}

async function auditOf(userId: string) {
  const { rows } = await service.db.pool.query(
    'SELECT operator, action, note, outcome, trace_id FROM audit_log WHERE user_id = $1 ORDER BY number',
    [userId],
  );
  return rows;
}

describe('an operator', () => {
  test('sees all devices that a user ever had, which keys are there, and how the pools are', async () => {
    const [phone, tablet] = await twoDevices();
    const { userId } = phone;
    await service
      .asService('session')
      .claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId: 'phone' }] });
    await service.revoke(userId, tablet.deviceId);
    const operator = await service.view('operator');
    const seen = await operator.findDevices({ userId });
    expect(seen).toMatchObject({
      userId,
      userPseudonym: pseudonym(userId),
      deviceListVersion: 3n,
      rootKeyPresent: true,
    });
    expect([seen.rootKeyChangedAt, seen.erasedAt]).toEqual([undefined, undefined]);
    expect(seen.devices).toMatchObject([
      {
        device: { userId, deviceId: 'phone' },
        devicePseudonym: pseudonym('phone'),
        deviceListVersion: 1n,
        revocationDeviceListVersion: 0n,
        keysPresent: keySet,
        keysMissing: [],
        oneTimePrekeys: 3,
        oneTimeKemPrekeys: 2,
        prekeysClaimed: 2n,
        signedPrekeyRotatedAt: expect.anything(),
        registeredAt: expect.anything(),
        suite: 1,
        writerBuild: expect.stringMatching(/./),
        traceId: trace,
        revocationWriterBuild: '',
        revocationTraceId: '',
      },
      {
        device: { userId, deviceId: 'tablet' },
        revokedAt: expect.anything(),
        revocationDeviceListVersion: 3n,
        oneTimePrekeys: 0,
        oneTimeKemPrekeys: 0,
        prekeysClaimed: 0n,
        revocationWriterBuild: seen.devices[1]?.writerBuild,
        revocationTraceId: trace,
      },
    ]);
    expect(seen.devices[0]?.revokedAt).toBeUndefined();
    expect(seen.devices[1]?.revocationTraceId).not.toBe(seen.devices[1]?.traceId);
  });

  test('is told nothing of who revoked a device before that was written down', async () => {
    const [phone, tablet] = await twoDevices();
    const { userId } = phone;
    await service.revoke(userId, tablet.deviceId);
    await service.db.pool.query(
      'UPDATE devices SET revocation_writer_build = NULL, revocation_trace_id = NULL WHERE user_id = $1',
      [userId],
    );
    const seen = await (await service.view('operator')).findDevices({ userId });
    expect(seen.devices[1]).toMatchObject({
      revokedAt: expect.anything(),
      revocationWriterBuild: '',
      revocationTraceId: '',
    });
  });

  test('finds a user by the pseudonym that traces show, and nobody by another', async () => {
    const [phone] = await twoDevices();
    const operator = await service.view('operator');
    const { userId } = phone;
    const seen = await operator.findDevices({ userPseudonym: pseudonym(userId) });
    expect(seen).toMatchObject({ userId, devices: [{ device: { deviceId: 'phone' } }, {}] });
    expect(await auditOf(userId)).toMatchObject([{ action: 'find_devices', note: pseudonym(userId), outcome: 'done' }]);
    const unknown = operator.findDevices({ userPseudonym: '0123456789abcdef' });
    expect((await refusalOf(unknown)).reason).toBe('NOT_FOUND_OR_NOT_PERMITTED');
    const { rows } = await service.db.pool.query(`SELECT outcome FROM audit_log WHERE note = '0123456789abcdef'`);
    expect(rows).toEqual([{ outcome: 'NOT_FOUND_OR_NOT_PERMITTED' }]);
    for (const request of [{}, { userId, userPseudonym: pseudonym(userId) }, { userId: 'a b' }, { userPseudonym: 'x' }])
      expect((await refusalOf(operator.findDevices(request))).reason).toBe('INVALID_FIELD');
  });

  test('is told that nothing is known of an unknown user, and is written down before the answer', async () => {
    const userId = newUser();
    const operator = await service.view('operator');
    expect(await operator.findDevices({ userId })).toMatchObject({
      deviceListVersion: 0n,
      rootKeyPresent: false,
      devices: [],
    });
    expect(await auditOf(userId)).toMatchObject([
      { operator: 'operator', action: 'find_devices', note: '', outcome: 'done', trace_id: trace },
    ]);
    await service.db.pool.query('ALTER TABLE audit_log ADD CONSTRAINT full_now CHECK (false) NOT VALID');
    try {
      expect((await refusalOf(operator.findDevices({ userId }))).reason).toBe('INTERNAL_FAULT');
    } finally {
      await service.db.pool.query('ALTER TABLE audit_log DROP CONSTRAINT full_now');
    }
  });

  test('gets no key, whatever there is', async () => {
    const [phone] = await twoDevices();
    const { userId } = phone;
    const answer = toJsonString(
      FindDevicesResponseSchema,
      await (await service.view('operator')).findDevices({ userId }),
    );
    const { rows } = await service.db.pool.query<{ bytes: Buffer }>(
      `WITH mine AS (SELECT * FROM devices WHERE user_id = $1)
       SELECT identity_key AS bytes FROM mine UNION ALL SELECT signing_key FROM mine UNION ALL SELECT certificate_root_key FROM mine
       UNION ALL SELECT certificate_signature FROM mine UNION ALL SELECT p.public_key FROM signed_prekeys p JOIN mine USING (device_number)
       UNION ALL SELECT p.signature FROM signed_prekeys p JOIN mine USING (device_number)
       UNION ALL SELECT p.public_key FROM last_resort_prekeys p JOIN mine USING (device_number)
       UNION ALL SELECT p.public_key FROM one_time_prekeys p JOIN mine USING (device_number)
       UNION ALL SELECT p.public_key FROM one_time_kem_prekeys p JOIN mine USING (device_number)`,
      [userId],
    );
    expect(rows.length).toBeGreaterThan(20);
    for (const { bytes } of rows)
      for (const text of [bytes.toString('hex').slice(0, 40), bytes.toString('base64').slice(0, 40)])
        expect(answer).not.toContain(text);
  });
});

describe('who may find devices', () => {
  test.for(wires)('over %s no device may, also of its own user', async (wire) => {
    const [phone] = await twoDevices();
    const { userId } = phone;
    for (const deviceId of ['phone', 'never-registered'])
      expect(
        await refusalOf((await service.view({ userId, deviceId }, { wire })).findDevices({ userId })),
      ).toMatchObject({ reason: 'CALLER_NOT_ALLOWED', metadata: { caller: 'device' } });
    expect(await auditOf(userId)).toEqual([]);
  });

  test('of the services session alone may, and what it asks for an operator is not written down twice', async () => {
    const [phone] = await twoDevices();
    const { userId } = phone;
    expect((await (await service.view({ service: 'session' })).findDevices({ userId })).devices).toHaveLength(2);
    for (const other of ['conversation', 'presence'] as const)
      expect(await refusalOf((await service.view({ service: other })).findDevices({ userId }))).toMatchObject({
        reason: 'CALLER_NOT_ALLOWED',
        metadata: { caller: other },
      });
    expect(await auditOf(userId)).toEqual([]);
  });
});

describe('damaged rows', () => {
  let damaged: IdentityKeysUnderTest;
  beforeAll(async () => {
    damaged = await startIdentityKeys();
  });
  afterAll(() => damaged?.stop());

  test('are told with the names of what is missing, where somebody dropped the constraints', async () => {
    const userId = newUser();
    const { device: first } = await damaged.register({ userId, deviceId: 'no-identity' });
    for (const deviceId of ['no-prekeys', 'whole'])
      await damaged.register({ userId, deviceId, rootKey: first.rootKey });
    const sql = (text: string, values: unknown[] = []) => damaged.db.pool.query(text, values);
    for (const column of ['identity_key', 'certificate_signature', 'suite'])
      await sql(`ALTER TABLE devices ALTER COLUMN ${column} DROP NOT NULL`);
    await sql(
      'ALTER TABLE devices DROP CONSTRAINT devices_have_a_signed_prekey, DROP CONSTRAINT devices_have_a_last_resort_prekey',
    );
    await sql('ALTER TABLE users ALTER COLUMN root_key DROP NOT NULL');
    await sql('ALTER TABLE devices DROP CONSTRAINT devices_certified_by_root_key');
    await sql(
      `UPDATE devices SET identity_key = NULL, certificate_signature = NULL, suite = NULL WHERE user_id = $1 AND device_id = 'no-identity'`,
      [userId],
    );
    for (const table of ['signed_prekeys', 'last_resort_prekeys'])
      await sql(
        `DELETE FROM ${table} p USING devices d WHERE d.device_number = p.device_number AND d.user_id = $1 AND d.device_id = 'no-prekeys'`,
        [userId],
      );
    await sql('UPDATE users SET root_key = NULL WHERE user_id = $1', [userId]);
    const seen = await (await damaged.view('operator')).findDevices({ userId });
    expect(seen.rootKeyPresent).toBe(false);
    const missing = Object.fromEntries(seen.devices.map(({ device, keysMissing }) => [device?.deviceId, keysMissing]));
    expect(missing).toEqual({
      'no-identity': ['identity_key', 'certificate'],
      'no-prekeys': ['signed_prekey', 'last_resort_prekey'],
      whole: [],
    });
  });
});

describe('the audit log', () => {
  test('demands why of what was done, and not of who looked or was refused', async () => {
    const add = (action: string, note: string, outcome: string) =>
      service.db.pool.query(
        `INSERT INTO audit_log (operator, action, note, outcome, trace_id) VALUES ('ops', $1, $2, $3, '')`,
        [action, note, outcome],
      );
    await expect(add('revoke_device', '', 'done')).rejects.toMatchObject({ constraint: 'audit_log_note_check' });
    await expect(add('find_devices', 'n'.repeat(501), 'done')).rejects.toMatchObject({
      constraint: 'audit_log_note_check',
    });
    await expect(add('find_devices', '', 'Done')).rejects.toMatchObject({ constraint: 'audit_log_outcome_check' });
    await add('find_devices', '', 'done');
    await add('revoke_device', '', 'NOT_FOUND_OR_NOT_PERMITTED');
  });
});
