import { randomUUID } from 'node:crypto';
import { createKemPrekey, createSignedPrekey } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { isCheckViolation } from '@keytrail/storage';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { forgetOldClaims } from '../src/jobs/forget-old-claims.ts';
import { makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
let device: TestDevice;
let number: bigint;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());
beforeEach(async () => {
  device = (await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 3, kem: 3 })).device;
  number = (await run('SELECT device_number FROM devices WHERE user_id = $1', device.userId))[0]
    ?.device_number as bigint;
});

async function run(sql: string, ...values: unknown[]) {
  return (await service.db.pool.query<Record<string, unknown>>(sql, values)).rows;
}

/** The error of a statement, or of several in one transaction. */
async function errorOf(...statements: string[]): Promise<unknown> {
  const client = await service.db.pool.connect();
  try {
    await client.query('BEGIN');
    for (const sql of statements) await client.query(sql.replaceAll('$1', String(number)));
    await client.query('COMMIT');
    return undefined;
  } catch (error) {
    await client.query('ROLLBACK');
    return error;
  } finally {
    client.release();
  }
}

const ref = () => ({ userId: device.userId, deviceId: device.deviceId });
const week = 7 * 24 * 3_600_000;

async function claim(claimId: string = randomUUID()) {
  const { results } = await service.asService('session').claimPrekeyBundles({ claimId, devices: [ref()] });
  return results[0]?.bundle;
}

const pools = [
  ['unclaimed_one_time_prekeys', 'one_time_prekeys', 'one_time_prekeys_enter_once', 1],
  ['unclaimed_one_time_kem_prekeys', 'one_time_kem_prekeys', 'kem_prekeys_enter_once', 2],
] as const;

describe.for(pools)('by straight SQL, %s', ([pool, keys, entersOnce, keyId]) => {
  const put = (seq: number, id: number) =>
    `INSERT INTO ${pool} (device_number, seq, key_id) VALUES ($1, ${seq}, ${id})`;

  test('does not take a prekey back that was claimed', async () => {
    await claim();
    expect(isCheckViolation(await errorOf(put(99, keyId)), entersOnce)).toBe(true);
    expect(isCheckViolation(await errorOf(put(1, keyId)), entersOnce)).toBe(true);
  });

  test('does not take a prekey back after it was taken out, nor one that is in it a second time', async () => {
    const takeOut = `DELETE FROM ${pool} WHERE device_number = $1 AND key_id = ${keyId}`;
    expect(isCheckViolation(await errorOf(takeOut, put(99, keyId)), entersOnce)).toBe(true);
    expect(isCheckViolation(await errorOf(put(99, keyId)), entersOnce)).toBe(true);
    const columns = keys === 'one_time_prekeys' ? '' : ', signature';
    const add = `INSERT INTO ${keys} (device_number, key_id, public_key${columns}) SELECT device_number, 500, public_key${columns} FROM ${keys} WHERE device_number = $1 AND key_id = ${keyId}`;
    expect(isCheckViolation(await errorOf(add, put(98, 500), put(99, 500)), entersOnce)).toBe(true);
    expect(await errorOf(add, put(98, 500))).toBeUndefined();
  });

  test('does not let a row become that of another key', async () => {
    await claim();
    const change = `UPDATE ${pool} SET key_id = ${keyId} WHERE device_number = $1 AND seq = 2`;
    expect(isCheckViolation(await errorOf(change), 'unclaimed_prekeys_never_change')).toBe(true);
  });
});

describe.for(pools)('by straight SQL, of %s', ([pool, keys, , keyId]) => {
  const onlyShrink = keys === 'one_time_prekeys' ? 'one_time_prekeys_only_shrink' : 'kem_prekeys_only_shrink';
  const of = `WHERE device_number = $1 AND key_id = ${keyId}`;
  const alsoGone = keys === 'one_time_prekeys' ? '' : ', signature = NULL';
  const shrink = `UPDATE ${keys} SET public_key_digest = sha256(public_key), public_key = NULL${alsoGone} ${of}`;

  test('the keys cannot lose their bytes while they are unclaimed', async () => {
    expect(isCheckViolation(await errorOf(shrink), onlyShrink)).toBe(true);
    expect(isCheckViolation(await errorOf(`UPDATE ${keys} SET retired = true ${of}`), onlyShrink)).toBe(true);
    expect(await errorOf(`DELETE FROM ${pool} ${of}`, shrink)).toBeUndefined();
  });

  test('the keys have bytes or a digest, and the digest is theirs for ever', async () => {
    await claim();
    expect(isCheckViolation(await errorOf(`UPDATE ${keys} SET public_key = NULL${alsoGone} ${of}`))).toBe(true);
    const other = `UPDATE ${keys} SET public_key_digest = sha256('other'), public_key = NULL${alsoGone} ${of}`;
    expect(isCheckViolation(await errorOf(other), onlyShrink)).toBe(true);
    expect(await errorOf(shrink)).toBeUndefined();
    for (const change of ["public_key_digest = sha256('other')", 'key_id = 77', 'added_in = pg_current_xact_id()'])
      expect(isCheckViolation(await errorOf(`UPDATE ${keys} SET ${change} ${of}`), onlyShrink)).toBe(true);
  });
});

const current = [
  ['signed_prekeys', 'current_signed_prekey_id', 'devices_never_go_back_to_a_signed_prekey'],
  ['last_resort_prekeys', 'current_last_resort_prekey_id', 'devices_never_go_back_to_a_last_resort_prekey'],
] as const;

async function rotateBoth(keyId: number) {
  await (await service.asDevice(device)).rotateSignedPrekey({
    requestId: randomUUID(),
    signedPrekey: createSignedPrekey(nodePrimitives, device, keyId).upload,
    lastResortPrekey: createKemPrekey(nodePrimitives, device, keyId, 'kem-last-resort').upload,
  });
}

describe.for(current)('by straight SQL, of %s', ([table, column, neverBack]) => {
  test('one that was replaced never becomes current again', async () => {
    await rotateBoth(50);
    const error = await errorOf(`UPDATE devices SET ${column} = 1 WHERE device_number = $1`);
    expect(isCheckViolation(error, neverBack)).toBe(true);
  });

  test('one that is replaced is marked so, by whatever statement', async () => {
    const add = `INSERT INTO ${table} (device_number, key_id, public_key, signature) SELECT device_number, 60, public_key, signature FROM ${table} WHERE device_number = $1`;
    expect(await errorOf(add, `UPDATE devices SET ${column} = 60 WHERE device_number = $1`)).toBeUndefined();
    expect(
      await run(
        `SELECT key_id, replaced_at IS NOT NULL AS replaced FROM ${table} WHERE device_number = $1 ORDER BY key_id`,
        number,
      ),
    ).toEqual([
      { key_id: 1n, replaced: true },
      { key_id: 60n, replaced: false },
    ]);
  });

  test('the current one keeps its bytes, and is not replaced', async () => {
    const shrink = `UPDATE ${table} SET public_key_digest = sha256(public_key), public_key = NULL, signature = NULL WHERE device_number = $1`;
    expect(isCheckViolation(await errorOf(shrink), `${table}_keep_what_is_current`)).toBe(true);
    const replace = `UPDATE ${table} SET replaced_at = now() WHERE device_number = $1`;
    expect(isCheckViolation(await errorOf(replace), `${table}_only_shrink`)).toBe(true);
  });
});

describe('by straight SQL, an id of a KEM prekey', () => {
  const kem = (table: string, id: number) =>
    `INSERT INTO ${table} (device_number, key_id, public_key, signature) VALUES ($1, ${id}, decode(repeat('00', 1184), 'hex'), decode(repeat('00', 64), 'hex'))`;

  test('names a one-time or a last-resort prekey, never both', async () => {
    for (const sql of [kem('last_resort_prekeys', 2), kem('one_time_kem_prekeys', 1)])
      expect(isCheckViolation(await errorOf(sql), 'kem_prekey_ids_name_one_kind')).toBe(true);
  });

  test('names one kind also when both are added at the same time', async () => {
    const outcomes = await Promise.all(
      Array.from({ length: 10 }, (_, i) =>
        Promise.all([errorOf(kem('last_resort_prekeys', 300 + i)), errorOf(kem('one_time_kem_prekeys', 300 + i))]),
      ),
    );
    for (const errors of outcomes)
      expect(errors.filter((error) => isCheckViolation(error, 'kem_prekey_ids_name_one_kind'))).toHaveLength(1);
    const both = `SELECT count(*) AS both FROM last_resort_prekeys l JOIN one_time_kem_prekeys k USING (device_number, key_id) WHERE device_number = $1`;
    expect(await run(both, number)).toEqual([{ both: 0n }]);
  });
});

describe('a claimed prekey', () => {
  const sizes = () =>
    run(
      `SELECT (SELECT count(*) FROM one_time_prekeys WHERE device_number = $1 AND public_key IS NULL) AS one_time,
              (SELECT count(*) FROM one_time_kem_prekeys WHERE device_number = $1 AND public_key IS NULL) AS kem`,
      number,
    );

  test('keeps its bytes while its claim can be repeated, and its SHA-256 for ever', async () => {
    const claimId = randomUUID();
    const upload = { oneTimePrekeys: makeOneTimePrekeys(900, 1), oneTimeKemPrekeys: makeKemPrekeys(device, 900, 1) };
    const client = await service.asDevice(device);
    await client.replenishPrekeys({ requestId: randomUUID(), ...upload });
    for (let i = 0; i < 3; i++) await claim();
    const bundle = await claim(claimId);
    expect([bundle?.oneTimePrekey?.keyId, bundle?.kemPrekey?.keyId]).toEqual([900, 900]);
    await run("UPDATE claims SET claimed_at = now() - interval '6 days 23 hours'");
    await forgetOldClaims(service.db);
    expect(await claim(claimId)).toEqual(bundle);
    expect(await sizes()).toEqual([{ one_time: 0n, kem: 0n }]);

    await run("UPDATE claims SET claimed_at = now() - interval '7 days 1 second'");
    await forgetOldClaims(service.db);
    expect(await sizes()).toEqual([{ one_time: 4n, kem: 4n }]);
    // The same keys again change nothing, others are refused, as on the first day.
    const { counts } = await client.replenishPrekeys({ requestId: randomUUID(), ...upload });
    expect(counts).toMatchObject({ oneTime: 0, kem: 0 });
    for (const other of [
      { oneTimePrekeys: makeOneTimePrekeys(900, 1) },
      { oneTimeKemPrekeys: makeKemPrekeys(device, 900, 1) },
    ])
      expect(await refusalOf(client.replenishPrekeys({ requestId: randomUUID(), ...other }))).toMatchObject({
        reason: 'PREKEY_ID_CONFLICT',
      });
  });

  test('is shrunk in batches, by replicas at the same time, each once', async () => {
    await run('DELETE FROM claims');
    const devices = [];
    for (let i = 0; i < 5; i++)
      devices.push((await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 60, kem: 0 })).device);
    const client = service.asService('session');
    const refs = devices.map(({ userId, deviceId }) => ({ userId, deviceId }));
    for (let i = 0; i < 50; i++)
      await Promise.all(refs.map((each) => client.claimPrekeyBundles({ claimId: randomUUID(), devices: [each] })));
    await run("UPDATE claims SET claimed_at = now() - interval '8 days'");
    const forgotten = await Promise.all(Array.from({ length: 3 }, () => forgetOldClaims(service.db)));
    const sum = (of: 'claims' | 'oneTime') => forgotten.reduce((all, each) => all + each[of], 0);
    expect([sum('claims'), sum('oneTime')]).toEqual([250, 250]);
  });
});

describe('a replaced prekey', () => {
  const shrunk = () =>
    run(
      `SELECT count(*) FILTER (WHERE public_key IS NULL) AS shrunk, count(*) AS there FROM
         (SELECT public_key FROM signed_prekeys WHERE device_number = $1 UNION ALL SELECT public_key FROM last_resort_prekeys WHERE device_number = $1) keys`,
      number,
    );
  const replacedBefore = async (interval: string) => {
    for (const table of ['signed_prekeys', 'last_resort_prekeys'])
      await run(
        `UPDATE ${table} SET added_at = now() - interval '99 days', replaced_at = now() - interval '${interval}' WHERE device_number = $1 AND replaced_at IS NOT NULL`,
        number,
      );
  };

  test('keeps its bytes for the grace period, and a digest that its id is known by for ever', async () => {
    const first = createSignedPrekey(nodePrimitives, device, 70).upload;
    const client = await service.asDevice(device);
    await client.rotateSignedPrekey({ requestId: randomUUID(), signedPrekey: first });
    await rotateBoth(71);
    await replacedBefore('13 days 23 hours');
    await forgetOldClaims(service.db, 2 * week);
    expect(await shrunk()).toEqual([{ shrunk: 0n, there: 5n }]);
    await replacedBefore('14 days 1 minute');
    expect(await forgetOldClaims(service.db, 2 * week)).toMatchObject({ signed: 2, lastResort: 1 });
    expect(await shrunk()).toEqual([{ shrunk: 3n, there: 5n }]);
    expect(await refusalOf(client.rotateSignedPrekey({ requestId: randomUUID(), signedPrekey: first }))).toMatchObject({
      reason: 'PREKEY_ID_CONFLICT',
    });
  });

  test('keeps its bytes as long as a claim can be repeated, however short the grace period is', async () => {
    const claimId = randomUUID();
    const bundle = await claim(claimId);
    await rotateBoth(80);
    await replacedBefore('6 days 23 hours');
    await run("UPDATE claims SET claimed_at = now() - interval '6 days 23 hours 59 minutes'");
    await forgetOldClaims(service.db, 1);
    expect(await claim(claimId)).toEqual(bundle);
  });
});

test('a row with a KEM prekey stays in its page: six to a page, nothing aside', async () => {
  await (await service.asDevice(device)).replenishPrekeys({
    requestId: randomUUID(),
    oneTimeKemPrekeys: makeKemPrekeys(device, 2000, 60),
  });
  const [row] = await run(
    `SELECT max(pg_column_size(k.*)) < 2000 AS small, coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) AS aside
       FROM one_time_kem_prekeys k, pg_class c WHERE c.oid = 'one_time_kem_prekeys'::regclass GROUP BY c.reltoastrelid`,
  );
  expect(row).toEqual({ small: true, aside: 0n });
  const pages = await run(
    `SELECT max(rows) AS most FROM (SELECT (ctid::text::point)[0] AS page, count(*) AS rows FROM one_time_kem_prekeys
      WHERE public_key IS NOT NULL GROUP BY 1) pages`,
  );
  expect(pages).toEqual([{ most: 6n }]);
});
