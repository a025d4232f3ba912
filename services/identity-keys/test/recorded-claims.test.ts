import { randomUUID } from 'node:crypto';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

function run(sql: string, values: unknown[]) {
  return service.db.pool.query(sql, values);
}

describe('the database refuses', () => {
  test.for([
    ['unclaimed_one_time_prekeys', 'one_time_prekeys', "sha256('a')", ''],
    [
      'unclaimed_one_time_kem_prekeys',
      'one_time_kem_prekeys',
      "decode(repeat('ab', 1184), 'hex')",
      ", decode(repeat('cd', 64), 'hex')",
    ],
  ] as const)('a prekey of a revoked device in %s', async ([pool, keys, key, signature]) => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const upload = (keyId: number) =>
      run(
        `WITH added AS (INSERT INTO ${keys} (device_number, key_id, public_key${signature && ', signature'})
                        SELECT device_number, $2, ${key}${signature} FROM devices WHERE user_id = $1)
         INSERT INTO ${pool} (device_number, seq, key_id) SELECT device_number, $2, $2 FROM devices WHERE user_id = $1`,
        [device.userId, keyId],
      );
    await upload(100);
    await service.revoke(device.userId);
    await expect(upload(101)).rejects.toMatchObject({ constraint: 'pools_of_active_devices' });
  });

  test('another answer in a recorded claim, and takes out what is forgotten', async () => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asRegistered({ userId: newUser(), deviceId: 'asking' });
    const claimId = randomUUID();
    await client.claimPrekeyBundles({ claimId, userIds: [device.userId] });
    const spoil = (assignment: string) => run(`UPDATE claims SET ${assignment} WHERE claim_id = $1`, [claimId]);
    for (const assignment of [
      `caller = 'device:mallory/phone'`,
      'claim_id = gen_random_uuid()',
      "devices_digest = sha256('')",
      "not_permitted = '{1}'",
      "device_list_versions = '{7}'",
      "user_ids = '{mallory}'",
      "one_time_prekey_ids = '{77}'",
      "kem_prekey_ids = '{NULL}'",
      "device_numbers = '{NULL}'",
    ])
      await expect(spoil(assignment), assignment).rejects.toMatchObject({ constraint: 'claims_only_forget' });
    await spoil(
      `user_ids = '{""}', device_numbers = '{NULL}', signed_prekey_ids = '{NULL}', last_resort_prekey_ids = '{NULL}', one_time_prekey_ids = '{NULL}', kem_prekey_ids = '{NULL}'`,
    );
  });
});

test.for(wires)(
  'nobody is permitted to claim from an erased user, nor an erased user from anybody (%s)',
  async (wire) => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const operator = await service.asOperator({ wire });
    const erased = device.userId;
    await operator.deleteUser({ requestId: randomUUID(), userId: erased, auditNote: 'asked for' });
    const expiresAt = timestampFromDate(new Date(Date.now() + 3_600_000));
    const other = newUser();
    for (const [userId, targetUserId] of [
      [erased, other],
      [other, erased],
    ] as const)
      expect(
        await refusalOf(operator.setClaimPermission({ requestId: randomUUID(), userId, targetUserId, expiresAt })),
      ).toMatchObject({ code: Code.FailedPrecondition, reason: 'USER_ERASED' });
  },
);
