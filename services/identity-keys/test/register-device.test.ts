import { randomUUID } from 'node:crypto';
import { clone, create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import { RegisterDeviceRequestSchema } from '@keytrail/contracts';
import { certifyDevice, createRootKey } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { readRefusal } from '@keytrail/rpc';
import { statement } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeDevice, makeKemPrekeys, makeOneTimePrekeys } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({
    replicas: 2,
    settings: { KEYTRAIL_MAX_DEVICES_PER_USER: '3', KEYTRAIL_MAX_DEVICES_EVER_PER_USER: '12' },
  });
});
afterAll(() => service?.stop());

const countRows = statement(
  'test_rows_of_user',
  `SELECT (SELECT count(*) FROM users WHERE user_id = $1) AS users, (SELECT count(*) FROM devices WHERE user_id = $1) AS devices,
          (SELECT count(*) FROM outbox WHERE aggregate = $1) AS events`,
);
const countKeys = statement(
  'test_keys_of_device',
  `SELECT (SELECT count(*) FROM signed_prekeys s WHERE s.device_number = d.device_number) AS signed,
          (SELECT count(*) FROM last_resort_prekeys s WHERE s.device_number = d.device_number) AS last_resort,
          (SELECT count(*) FROM one_time_prekeys s WHERE s.device_number = d.device_number) AS one_time,
          (SELECT count(*) FROM unclaimed_one_time_kem_prekeys s WHERE s.device_number = d.device_number) AS kem,
          d.writer_build, d.created_trace_id
     FROM devices d WHERE user_id = $1`,
);

type Registration = ReturnType<typeof makeDevice>['registration'];

async function expectNothingStored(userId: string) {
  expect(await service.db.query(countRows, [userId])).toEqual([{ users: 0n, devices: 0n, events: 0n }]);
}

describe('a registration', () => {
  test.for(wires)('stores the whole key set, and where it came from (%s)', async (wire) => {
    const userId = newUser();
    const { device, registration } = makeDevice({ userId, deviceId: 'phone', oneTime: 100, kem: 100 });
    const client = await service.asDevice(device, { wire });
    const response = await client.registerDevice(registration);
    expect(response).toMatchObject({ deviceListVersion: 1n, counts: { oneTime: 100, kem: 100 } });
    const [stored] = await service.db.query<Record<string, unknown>>(countKeys, [userId]);
    expect(stored).toMatchObject({ signed: 1n, last_resort: 1n, one_time: 100n, kem: 100n });
    expect(stored?.writer_build).toMatch(/^\d+\.\d+\.\d+\+[0-9a-f]{12}$/);
    expect(stored?.created_trace_id).toMatch(/^[0-9a-f]{32}$/);
  });

  test('is whole without one-time prekeys', async () => {
    const { response } = await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 0, kem: 0 });
    expect(response).toMatchObject({ deviceListVersion: 1n, counts: { oneTime: 0, kem: 0 } });
  });

  const required = [
    ['requestId', 'request_id'],
    ['identityKey', 'identity_key'],
    ['signingKey', 'signing_key'],
    ['certificate', 'certificate'],
    ['signedPrekey', 'signed_prekey'],
    ['lastResortPrekey', 'last_resort_prekey'],
  ] as const;
  test.for(wires.flatMap((wire) => required.map(([key, field]) => ({ wire, key, field }))))(
    'without $field stores nothing ($wire)',
    async ({ wire, key, field }) => {
      const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
      const { $typeName, $unknown, [key]: _dropped, ...partial } = registration;
      const refusal = await refusalOf(
        (await service.asDevice(device, { wire })).registerDevice(create(RegisterDeviceRequestSchema, partial)),
      );
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
      expect(refusal.fields.map((problem) => problem.field)).toContain(field);
      await expectNothingStored(device.userId);
    },
  );

  const other = makeDevice({ userId: 'mallory', deviceId: 'phone' });
  const bytes = (length: number, fill: number) => new Uint8Array(length).fill(fill);
  const smallOrder = bytes(32, 0);
  const hostile: Record<
    string,
    { spoil: (r: Registration) => void; reason: string; metadata: Record<string, string> }
  > = {
    'a certificate by another root key': {
      spoil: (r) => {
        if (r.certificate) r.certificate.rootKey = other.device.rootKey.publicKey;
      },
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'certificate.signature', rule: 'signature' },
    },
    'the certificate of another device': {
      spoil: (r) => {
        r.certificate = other.registration.certificate as NonNullable<Registration['certificate']>;
      },
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'certificate.signature', rule: 'signature' },
    },
    'a certificate with a time finer than it signs': {
      spoil: (r) => {
        if (r.certificate) r.certificate.certifiedAt = { ...timestampFromMs(1_000), nanos: 1 };
      },
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'certificate.certified_at', rule: 'time' },
    },
    'another identity key than was certified': {
      spoil: (r) => {
        r.identityKey = other.registration.identityKey;
      },
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'certificate.signature', rule: 'signature' },
    },
    'a signed prekey that another device signed': {
      spoil: (r) => {
        if (r.signedPrekey && other.registration.signedPrekey) r.signedPrekey = other.registration.signedPrekey;
      },
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'signed_prekey.signature', key_id: '1' },
    },
    'a last-resort prekey under another id than was signed': {
      spoil: (r) => {
        if (r.lastResortPrekey) r.lastResortPrekey.keyId = 99;
      },
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'last_resort_prekey.signature', key_id: '99' },
    },
    'a one-time KEM prekey with a broken signature': {
      spoil: (r) => {
        const prekey = r.oneTimeKemPrekeys[2];
        if (prekey) prekey.signature = bytes(64, 7);
      },
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'one_time_kem_prekeys[2].signature', key_id: '4' },
    },
    'a last-resort prekey passed off as a one-time prekey': {
      spoil: (r) => {
        r.oneTimeKemPrekeys = [{ ...(r.lastResortPrekey as (typeof r.oneTimeKemPrekeys)[0]) }];
        r.lastResortPrekey = {
          ...(other.registration.lastResortPrekey as NonNullable<typeof r.lastResortPrekey>),
          keyId: 50,
        };
      },
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'last_resort_prekey.signature', key_id: '50' },
    },
    'an identity key of low order': {
      spoil: (r) => {
        r.identityKey = smallOrder;
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'identity_key', rule: 'low-order' },
    },
    'an identity key that is not canonical': {
      spoil: (r) => {
        r.identityKey = bytes(32, 0xff);
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'identity_key', rule: 'not-canonical' },
    },
    'a signing key of low order': {
      spoil: (r) => {
        r.signingKey = new Uint8Array([1, ...bytes(31, 0)]);
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'signing_key', rule: 'low-order' },
    },
    'a root key of low order': {
      spoil: (r) => {
        if (r.certificate) r.certificate.rootKey = new Uint8Array([1, ...bytes(31, 0)]);
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'certificate.root_key', rule: 'low-order' },
    },
    'a signed prekey of low order': {
      spoil: (r) => {
        if (r.signedPrekey) r.signedPrekey.publicKey = smallOrder;
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'signed_prekey.public_key', key_id: '1', rule: 'low-order' },
    },
    'a one-time prekey of low order': {
      spoil: (r) => {
        const prekey = r.oneTimePrekeys[1];
        if (prekey) prekey.publicKey = smallOrder;
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'one_time_prekeys[1].public_key', key_id: '2', rule: 'low-order' },
    },
    'a one-time KEM prekey beyond the modulus': {
      spoil: (r) => {
        const prekey = r.oneTimeKemPrekeys[1];
        if (prekey) prekey.publicKey = bytes(1184, 0xff);
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'one_time_kem_prekeys[1].public_key', key_id: '3', rule: 'modulus' },
    },
    'a last-resort prekey beyond the modulus': {
      spoil: (r) => {
        if (r.lastResortPrekey) r.lastResortPrekey.publicKey = bytes(1184, 0xff);
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'last_resort_prekey.public_key', key_id: '1', rule: 'modulus' },
    },
    'a one-time prekey id twice': {
      spoil: (r) => {
        const prekey = r.oneTimePrekeys[2];
        if (prekey) prekey.keyId = 1;
      },
      reason: 'INVALID_FIELD',
      metadata: { field: 'one_time_prekeys[2].key_id' },
    },
    'a one-time KEM prekey with the id of the last-resort prekey': {
      spoil: (r) => {
        const prekey = r.oneTimeKemPrekeys[0];
        if (prekey) prekey.keyId = 1;
      },
      reason: 'INVALID_FIELD',
      metadata: { field: 'one_time_kem_prekeys[0].key_id' },
    },
  };
  test.for(Object.entries(hostile))('with %s stores nothing', async ([, { spoil, reason, metadata }]) => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const spoilt = clone(RegisterDeviceRequestSchema, registration);
    spoil(spoilt);
    const refusals = [];
    for (const wire of wires)
      refusals.push(await refusalOf((await service.asDevice(device, { wire })).registerDevice(spoilt)));
    for (const refusal of refusals) {
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason, metadata });
      expect(refusal.fields[0]?.field).toBe(metadata.field);
    }
    await expectNothingStored(device.userId);
  });

  test('for another device of the token is refused: the certificate does not name it', async () => {
    const { registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const stranger = { userId: newUser(), deviceId: 'phone' };
    const refusal = await refusalOf((await service.asDevice(stranger)).registerDevice(registration));
    expect(refusal.reason).toBe('CERTIFICATE_INVALID');
    await expectNothingStored(stranger.userId);
  });
});

describe('a registration tried again', () => {
  test('with the same request id gets the same answer, with other content a refusal', async () => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asDevice(device);
    const first = await client.registerDevice(registration);
    expect(await client.registerDevice(registration)).toEqual(first);
    const changed = { ...registration, oneTimePrekeys: makeOneTimePrekeys(1, 2) };
    expect(await refusalOf(client.registerDevice(changed))).toMatchObject({
      code: Code.AlreadyExists,
      reason: 'REQUEST_ID_REUSED',
      metadata: { request_id: registration.requestId },
    });
  });

  test('with another request id and the same keys gets the same answer, also signed anew', async () => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asDevice(device);
    const first = await client.registerDevice(registration);
    await service.register({ ...device, deviceId: 'tablet' });
    expect(await client.registerDevice({ ...registration, requestId: randomUUID() })).toEqual(first);
    const { identityKey, signingKey } = registration;
    const certificate = certifyDevice(
      nodePrimitives,
      device.rootKey,
      { ...device, identityKey, signingKey },
      new Date(1),
    );
    expect(await client.registerDevice({ ...registration, requestId: randomUUID(), certificate })).toEqual(first);
    const [rows] = await service.db.query<{ devices: bigint }>(countRows, [device.userId]);
    expect(rows?.devices).toBe(2n);
  });

  test('with other keys is refused and changes nothing', async () => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asDevice(device);
    await client.registerDevice(registration);
    const { rootKey, userId, deviceId } = device;
    const others = [
      makeDevice({ userId, deviceId, rootKey }).registration,
      { ...registration, requestId: randomUUID(), oneTimePrekeys: makeOneTimePrekeys(1, 3) },
      { ...registration, requestId: randomUUID(), oneTimeKemPrekeys: makeKemPrekeys(device, 2, 3) },
    ];
    for (const other of others)
      expect(await refusalOf(client.registerDevice(other))).toMatchObject({
        code: Code.AlreadyExists,
        reason: 'DEVICE_ALREADY_REGISTERED',
        metadata: { device_id: deviceId },
      });
    expect(await client.registerDevice(registration)).toMatchObject({ deviceListVersion: 1n });
  });
});

describe('the devices of a user', () => {
  test('come with one version each, and with one root key', async () => {
    const { device, response } = await service.register({ userId: newUser(), deviceId: 'a' });
    expect(response.deviceListVersion).toBe(1n);
    const second = await service.register({ userId: device.userId, deviceId: 'b', rootKey: device.rootKey });
    expect(second.response.deviceListVersion).toBe(2n);
    expect(await refusalOf(service.register({ userId: device.userId, deviceId: 'c' }))).toMatchObject({
      code: Code.FailedPrecondition,
      reason: 'ROOT_KEY_MISMATCH',
      metadata: { user_id: device.userId },
    });
    expect(await service.db.query(countRows, [device.userId])).toMatchObject([{ users: 1n, devices: 2n }]);
  });

  test('are bounded for ever, revoked ones counted, also when they come at the same time', async () => {
    const userId = newUser();
    const rootKey = createRootKey(nodePrimitives);
    for (let i = 0; i < 11; i++) {
      await service.register({ userId, deviceId: `old-${i}`, rootKey, oneTime: 1, kem: 1 });
      await service.revoke(userId, `old-${i}`);
    }
    const outcomes = await Promise.allSettled(
      ['a', 'b'].map((deviceId) => service.register({ userId, deviceId, rootKey, oneTime: 1, kem: 1 })),
    );
    const refused = outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [readRefusal(outcome.reason)] : []));
    expect(refused).toMatchObject([
      { code: Code.ResourceExhausted, reason: 'DEVICE_LIMIT_REACHED', metadata: { limit: '12', scope: 'ever' } },
    ]);
  });

  test('are bounded, revoked ones not counted', async () => {
    const userId = newUser();
    const rootKey = createRootKey(nodePrimitives);
    for (const deviceId of ['a', 'b', 'c']) await service.register({ userId, deviceId, rootKey });
    expect(await refusalOf(service.register({ userId, deviceId: 'd', rootKey }))).toMatchObject({
      code: Code.ResourceExhausted,
      reason: 'DEVICE_LIMIT_REACHED',
      metadata: { limit: '3', scope: 'active' },
    });
    await service.revoke(userId, 'a');
    const { response } = await service.register({ userId, deviceId: 'd', rootKey });
    expect(response.deviceListVersion).toBe(5n);
  });

  test('stay revoked: registering again is refused', async () => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const client = await service.asDevice(device);
    await client.registerDevice(registration);
    await service.revoke(device.userId, 'phone');
    expect(await refusalOf(client.registerDevice({ ...registration, requestId: randomUUID() }))).toMatchObject({
      code: Code.FailedPrecondition,
      reason: 'DEVICE_REVOKED',
    });
  });

  test('registered first at the same time with different root keys: one wins, the others are refused', async () => {
    const userId = newUser();
    const attempts = Array.from({ length: 8 }, (_, i) =>
      makeDevice({ userId, deviceId: `device-${i}`, oneTime: 1, kem: 1 }),
    );
    const outcomes = await Promise.allSettled(
      attempts.map(async ({ device, registration }, i) =>
        (await service.asDevice(device, { replica: i % 2 })).registerDevice(registration),
      ),
    );
    const won = outcomes.filter((outcome) => outcome.status === 'fulfilled');
    expect(won).toHaveLength(1);
    for (const outcome of outcomes)
      if (outcome.status === 'rejected') expect(readRefusal(outcome.reason).reason).toBe('ROOT_KEY_MISMATCH');
    expect(await service.db.query(countRows, [userId])).toMatchObject([{ users: 1n, devices: 1n }]);
  });

  test('registered at the same time under one root key get versions of their own', async () => {
    const userId = newUser();
    const rootKey = createRootKey(nodePrimitives);
    const versions = await Promise.all(
      ['a', 'b', 'c'].map(async (deviceId, i) => {
        const { device, registration } = makeDevice({ userId, deviceId, rootKey });
        return (await (await service.asDevice(device, { replica: i % 2 })).registerDevice(registration))
          .deviceListVersion;
      }),
    );
    expect(versions.sort()).toEqual([1n, 2n, 3n]);
  });

  test('registered twice at the same time is one device with one answer', async () => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    const answers = await Promise.all(
      Array.from({ length: 6 }, async (_, i) =>
        (await service.asDevice(device, { replica: i % 2 })).registerDevice({
          ...registration,
          requestId: i < 3 ? registration.requestId : randomUUID(),
        }),
      ),
    );
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    expect(await service.db.query(countRows, [device.userId])).toMatchObject([{ devices: 1n }]);
  });
});
