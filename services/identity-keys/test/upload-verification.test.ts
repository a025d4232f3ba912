import { randomUUID } from 'node:crypto';
import { clone, create } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import {
  type KemPrekey,
  type RegisterDeviceRequest,
  RegisterDeviceRequestSchema,
  type ReplenishPrekeysRequest,
  ReplenishPrekeysRequestSchema,
  type RotateSignedPrekeyRequest,
  RotateSignedPrekeyRequestSchema,
} from '@keytrail/contracts';
import { createKemPrekey, createRootKey, createSignedPrekey } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { statement } from '@keytrail/storage';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeDevice, makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

const poolBound = 50;
const deviceBound = 3;
let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({
    replicas: 2,
    settings: {
      KEYTRAIL_MAX_PREKEYS_PER_POOL: String(poolBound),
      KEYTRAIL_MAX_DEVICES_PER_USER: String(deviceBound),
    },
  });
});
afterAll(() => service?.stop());

const everythingOf = statement(
  'test_everything_of_user',
  `SELECT d.device_id, d.identity_key, d.signing_key, d.certificate_signature,
          (SELECT jsonb_agg(to_jsonb(s) - 'added_at' ORDER BY key_id) FROM signed_prekeys s WHERE s.device_number = d.device_number) AS signed,
          (SELECT jsonb_agg(to_jsonb(s) - 'added_at' ORDER BY key_id) FROM last_resort_prekeys s WHERE s.device_number = d.device_number) AS last_resort,
          (SELECT jsonb_agg(s.key_id || ':' || encode(k.public_key, 'hex') ORDER BY s.seq)
             FROM unclaimed_one_time_prekeys s JOIN one_time_prekeys k USING (device_number, key_id) WHERE s.device_number = d.device_number) AS one_time,
          (SELECT jsonb_agg(s.key_id || ':' || encode(k.public_key, 'hex') || encode(k.signature, 'hex') ORDER BY s.seq)
             FROM unclaimed_one_time_kem_prekeys s JOIN one_time_kem_prekeys k USING (device_number, key_id) WHERE s.device_number = d.device_number) AS kem,
          (SELECT count(*) FROM one_time_prekeys s WHERE s.device_number = d.device_number) AS one_time_ever,
          (SELECT count(*) FROM one_time_kem_prekeys s WHERE s.device_number = d.device_number) AS kem_ever
     FROM users u LEFT JOIN devices d USING (user_id) WHERE u.user_id = $1 ORDER BY d.added_in_version`,
);
const stored = (userId: string) => service.db.query<Record<string, unknown>>(everythingOf, [userId]);

const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const named = (prekeys: readonly { keyId: number; publicKey: Uint8Array; signature?: Uint8Array }[]) =>
  prekeys.length === 0
    ? null
    : prekeys.map(
        ({ keyId, publicKey, signature = new Uint8Array() }) => `${keyId}:${hexOf(publicKey)}${hexOf(signature)}`,
      );

type Registration = RegisterDeviceRequest;
type Mutation<T> = readonly [what: string, reasons: readonly string[], change: (upload: T) => void];

const badInput = ['INVALID_FIELD', 'KEY_INVALID', 'SIGNATURE_INVALID', 'CERTIFICATE_INVALID'];

interface Signed {
  keyId: number;
  publicKey: Uint8Array;
  signature: Uint8Array;
}

function flipped(bytes: Uint8Array, bit: number): Uint8Array {
  const at = bit % (bytes.length * 8);
  return bytes.with(at >> 3, (bytes[at >> 3] ?? 0) ^ (1 << (at & 7))) as Uint8Array;
}

/** Every signed or certified field of 32 bytes or more, to be read and written. One-time X25519 prekeys are not signed: see below. */
function fieldsOf(upload: Registration): { get(): Uint8Array; set(bytes: Uint8Array): void }[] {
  const { certificate, signedPrekey, lastResortPrekey } = upload;
  if (!certificate || !signedPrekey || !lastResortPrekey) throw new Error('not whole');
  const of = <K extends string>(owner: { [key in K]: Uint8Array }, key: K) => ({
    get: () => owner[key],
    set: (bytes: Uint8Array) => {
      owner[key] = bytes as (typeof owner)[K];
    },
  });
  const prekeys: Signed[] = [signedPrekey, lastResortPrekey, ...upload.oneTimeKemPrekeys];
  return [
    of(upload, 'identityKey'),
    of(upload, 'signingKey'),
    of(certificate, 'rootKey'),
    of(certificate, 'signature'),
    ...prekeys.flatMap((prekey) => [of(prekey, 'publicKey'), of(prekey, 'signature')]),
  ];
}

const anyBit = fc.nat({ max: 1184 * 8 - 1 });
const anyField = fc.nat();

const mutations: fc.Arbitrary<Mutation<Registration>> = fc.oneof(
  fc.tuple(anyField, anyBit).map(
    ([n, bit]): Mutation<Registration> => [
      `bit ${bit} of field ${n}`,
      badInput,
      (upload) => {
        const fields = fieldsOf(upload);
        const field = fields[n % fields.length];
        field?.set(flipped(field.get(), bit));
      },
    ],
  ),
  fc.tuple(anyField, fc.constantFrom(-32, -1, 1, 32)).map(
    ([n, by]): Mutation<Registration> => [
      `field ${n} longer by ${by}`,
      ['INVALID_FIELD'],
      (upload) => {
        const fields = fieldsOf(upload);
        const field = fields[n % fields.length];
        if (!field) return;
        const bytes = new Uint8Array(field.get().length + by);
        bytes.set(field.get().subarray(0, bytes.length));
        field.set(bytes);
      },
    ],
  ),
  fc.tuple(anyField, anyField).map(
    ([a, b]): Mutation<Registration> => [
      `two signatures swapped, ${a} and ${b}`,
      ['SIGNATURE_INVALID', 'CERTIFICATE_INVALID'],
      (upload) => {
        const signatures = fieldsOf(upload).filter((field) => field.get().length === 64);
        const first = signatures[a % signatures.length];
        const second = signatures[(a + 1 + (b % (signatures.length - 1))) % signatures.length];
        if (!first || !second) return;
        const kept = first.get();
        first.set(second.get());
        second.set(kept);
      },
    ],
  ),
  fc.tuple(anyField, fc.integer({ min: 1, max: 1_000 })).map(
    ([n, by]): Mutation<Registration> => [
      `the id of signed prekey ${n} another by ${by}`,
      ['SIGNATURE_INVALID'],
      (upload) => {
        const prekeys = [upload.signedPrekey, upload.lastResortPrekey, ...upload.oneTimeKemPrekeys];
        const prekey = prekeys[n % prekeys.length];
        if (prekey) prekey.keyId += by * 100;
      },
    ],
  ),
  fc.nat({ max: 31 }).map(
    (bit): Mutation<Registration> => [
      `another time of the certificate, bit ${bit}`,
      ['CERTIFICATE_INVALID', 'INVALID_FIELD'],
      (upload) => {
        const at = upload.certificate?.certifiedAt;
        if (at) at.seconds ^= 1n << BigInt(bit);
      },
    ],
  ),
  fc.constantFrom<Mutation<Registration>>(
    [
      'a one-time KEM prekey as the last resort',
      ['SIGNATURE_INVALID'],
      (upload) => {
        const [first] = upload.oneTimeKemPrekeys;
        if (first) upload.lastResortPrekey = first;
        upload.oneTimeKemPrekeys = upload.oneTimeKemPrekeys.slice(1);
      },
    ],
    [
      'the last resort as a one-time KEM prekey',
      ['SIGNATURE_INVALID'],
      (upload) => {
        const [first] = upload.oneTimeKemPrekeys;
        if (!first || !upload.lastResortPrekey) return;
        upload.oneTimeKemPrekeys[0] = upload.lastResortPrekey;
        upload.lastResortPrekey = first;
      },
    ],
    [
      'the signed prekey as a one-time prekey too',
      ['KEY_INVALID'],
      (upload) => {
        if (upload.signedPrekey && upload.oneTimePrekeys[0])
          upload.oneTimePrekeys[0].publicKey = upload.signedPrekey.publicKey;
      },
    ],
    [
      'identity and signing key swapped',
      badInput,
      (upload) => {
        [upload.identityKey, upload.signingKey] = [upload.signingKey, upload.identityKey];
      },
    ],
    [
      'the identity key as the signed prekey',
      badInput,
      (upload) => {
        if (upload.signedPrekey) upload.signedPrekey.publicKey = upload.identityKey;
      },
    ],
    [
      'one one-time prekey under two ids',
      ['KEY_INVALID'],
      (upload) => {
        const [first, second] = upload.oneTimePrekeys;
        if (first && second) second.publicKey = first.publicKey;
      },
    ],
    [
      'a one-time prekey with the top bit set',
      ['KEY_INVALID'],
      (upload) => {
        const [first] = upload.oneTimePrekeys;
        if (first) first.publicKey = flipped(first.publicKey, 255);
      },
    ],
  ),
);

const devices = fc.record({ oneTime: fc.integer({ min: 2, max: 6 }), kem: fc.integer({ min: 1, max: 4 }) });
const runs = { numRuns: 40 };

describe('a registration', () => {
  test('with any one thing changed is refused as bad input, with the field named, and nothing of it is stored', async () => {
    await fc.assert(
      fc.asyncProperty(devices, mutations, async (pools, [, reasons, change]) => {
        const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone', ...pools });
        const changed = clone(RegisterDeviceRequestSchema, registration);
        change(changed);
        const client = await service.asDevice(device);
        const refusal = await refusalOf(client.registerDevice(changed));
        expect(reasons).toContain(refusal.reason);
        expect(refusal.code).toBe(Code.InvalidArgument);
        expect(refusal.fields[0]?.field).toMatch(/^[a-z_]+/);
        expect(await stored(device.userId)).toEqual([]);
      }),
      runs,
    );
  });

  test('by another user or device than it was made for is refused', async () => {
    const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
    for (const other of [
      { userId: newUser(), deviceId: 'phone' },
      { userId: device.userId, deviceId: 'tablet' },
    ]) {
      const refusal = await refusalOf((await service.asDevice(other)).registerDevice(registration));
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'CERTIFICATE_INVALID' });
      expect(await stored(other.userId)).toEqual([]);
    }
  });

  test('with one key under two ids, or as two kinds, is refused: it would be handed out twice', async () => {
    const places: [string, (upload: Registration) => void][] = [
      [
        'one_time_prekeys[2].public_key',
        ({ oneTimePrekeys: [first, , third] }) => {
          if (first && third) third.publicKey = first.publicKey;
        },
      ],
      [
        'one_time_prekeys[0].public_key',
        ({ signedPrekey, oneTimePrekeys: [first] }) => {
          if (signedPrekey && first) first.publicKey = signedPrekey.publicKey;
        },
      ],
      [
        'one_time_kem_prekeys[1].public_key',
        ({ lastResortPrekey, oneTimeKemPrekeys: [, second] }) => {
          if (lastResortPrekey && second) second.publicKey = lastResortPrekey.publicKey;
        },
      ],
    ];
    for (const [field, change] of places) {
      const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
      change(registration);
      expect(await refusalOf((await service.asDevice(device)).registerDevice(registration))).toMatchObject({
        code: Code.InvalidArgument,
        reason: 'KEY_INVALID',
        metadata: { field, rule: 'repeated', key_id: expect.any(String) },
      });
      expect(await stored(device.userId)).toEqual([]);
    }
  });

  test('that is valid is stored whole, each key as it came', async () => {
    const valid = fc.record({ oneTime: fc.integer({ min: 0, max: 5 }), kem: fc.integer({ min: 0, max: 4 }) });
    await fc.assert(
      fc.asyncProperty(valid, async (pools) => {
        const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone', ...pools });
        await (await service.asDevice(device)).registerDevice(registration);
        const [row] = await stored(device.userId);
        expect(row).toMatchObject({
          identity_key: Buffer.from(registration.identityKey),
          signing_key: Buffer.from(registration.signingKey),
          certificate_signature: Buffer.from(registration.certificate?.signature ?? []),
          signed: [{ key_id: 1, public_key: `\\x${hexOf(device.signedPrekey.keyPair.publicKey)}` }],
          last_resort: [{ key_id: 1, public_key: `\\x${hexOf(device.lastResortPrekey.keyPair.publicKey)}` }],
          one_time: named(registration.oneTimePrekeys),
          kem: named(registration.oneTimeKemPrekeys),
        });
      }),
      { numRuns: 15 },
    );
  });

  test('under another root key than the stored one is refused, however well it is signed', async () => {
    const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
    const { registration } = makeDevice({ userId: device.userId, deviceId: 'tablet' });
    const before = await stored(device.userId);
    const client = await service.asDevice({ userId: device.userId, deviceId: 'tablet' });
    expect(await refusalOf(client.registerDevice(registration))).toMatchObject({ reason: 'ROOT_KEY_MISMATCH' });
    expect(await stored(device.userId)).toEqual(before);
  });

  test('with more one-time prekeys than a pool holds is refused', async () => {
    const { device, registration } = makeDevice({
      userId: newUser(),
      deviceId: 'phone',
      oneTime: poolBound + 1,
      kem: 0,
    });
    expect(await refusalOf((await service.asDevice(device)).registerDevice(registration))).toMatchObject({
      code: Code.ResourceExhausted,
      reason: 'PREKEY_POOL_FULL',
      metadata: { limit: String(poolBound), unclaimed: '0', field: 'one_time_prekeys' },
    });
    expect(await stored(device.userId)).toEqual([]);
  });

  test('of ten devices at once leaves the user with as many as allowed, over two replicas', async () => {
    const userId = newUser();
    const rootKey = createRootKey(nodePrimitives);
    const outcomes = await Promise.allSettled(
      Array.from({ length: 10 }, async (_, i) => {
        const { device, registration } = makeDevice({ userId, deviceId: `d${i}`, rootKey, oneTime: 1, kem: 1 });
        return (await service.asDevice(device, { replica: i % 2 })).registerDevice(registration);
      }),
    );
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(deviceBound);
    for (const outcome of outcomes)
      if (outcome.status === 'rejected')
        expect(await refusalOf(Promise.reject(outcome.reason))).toMatchObject({
          code: Code.ResourceExhausted,
          reason: 'DEVICE_LIMIT_REACHED',
          metadata: { limit: String(deviceBound) },
        });
    expect(await stored(userId)).toHaveLength(deviceBound);
  });
});

const replenishments: fc.Arbitrary<Mutation<ReplenishPrekeysRequest>> = fc.oneof(
  fc.tuple(anyField, anyBit).map(
    ([n, bit]): Mutation<ReplenishPrekeysRequest> => [
      `bit ${bit} of prekey ${n}`,
      ['SIGNATURE_INVALID', 'KEY_INVALID'],
      ({ oneTimeKemPrekeys }) => {
        const prekey = oneTimeKemPrekeys[n % oneTimeKemPrekeys.length];
        if (!prekey) return;
        if (n % 2 === 0) prekey.publicKey = flipped(prekey.publicKey, bit);
        else prekey.signature = flipped(prekey.signature, bit);
      },
    ],
  ),
  anyField.map(
    (n): Mutation<ReplenishPrekeysRequest> => [
      `a change of the id of prekey ${n}`,
      ['SIGNATURE_INVALID'],
      ({ oneTimeKemPrekeys }) => {
        const prekey = oneTimeKemPrekeys[n % oneTimeKemPrekeys.length];
        if (prekey) prekey.keyId += 5_000;
      },
    ],
  ),
  fc.constantFrom<Mutation<ReplenishPrekeysRequest>>(
    [
      'two signatures swapped',
      ['SIGNATURE_INVALID'],
      ({ oneTimeKemPrekeys: [first, second] }) => {
        if (first && second) [first.signature, second.signature] = [second.signature, first.signature];
      },
    ],
    [
      'an id twice',
      ['INVALID_FIELD'],
      ({ oneTimePrekeys: [first, second] }) => {
        if (first && second) second.keyId = first.keyId;
      },
    ],
    [
      'a KEM key under two ids',
      ['KEY_INVALID', 'SIGNATURE_INVALID'],
      ({ oneTimeKemPrekeys: [first, second] }) => {
        if (first && second) second.publicKey = first.publicKey;
      },
    ],
    [
      'a one-time prekey of zeros',
      ['KEY_INVALID'],
      ({ oneTimePrekeys: [first] }) => {
        if (first) first.publicKey = new Uint8Array(32);
      },
    ],
  ),
);

async function newDevice(): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone', oneTime: 1, kem: 1 })).device;
}

describe('new prekeys', () => {
  let device: TestDevice;
  let lastId = 1_000;
  beforeAll(async () => {
    device = await newDevice();
  });

  function upload(): ReplenishPrekeysRequest {
    lastId += 10;
    return create(ReplenishPrekeysRequestSchema, {
      requestId: randomUUID(),
      oneTimePrekeys: makeOneTimePrekeys(lastId, 3),
      oneTimeKemPrekeys: makeKemPrekeys(device, lastId, 3),
    });
  }

  test('with any one thing changed are refused as bad input, and none of them is stored', async () => {
    const client = await service.asDevice(device);
    const before = await stored(device.userId);
    await fc.assert(
      fc.asyncProperty(replenishments, async ([, reasons, change]) => {
        const changed = upload();
        change(changed);
        const refusal = await refusalOf(client.replenishPrekeys(changed));
        expect(reasons).toContain(refusal.reason);
        expect(refusal.code).toBe(Code.InvalidArgument);
        expect(refusal.metadata.field).toMatch(/^one_time_(kem_)?prekeys\[\d\]\./);
        expect(await stored(device.userId)).toEqual(before);
      }),
      runs,
    );
  });

  test('are verified with the stored signing key: signed by another key, or for another device of the user, they are refused', async () => {
    const client = await service.asDevice(device);
    const tablet = (await service.register({ userId: device.userId, deviceId: 'tablet', rootKey: device.rootKey }))
      .device;
    const before = await stored(device.userId);
    const other = nodePrimitives.ed25519.keyPair();
    for (const oneTimeKemPrekeys of [
      makeKemPrekeys({ ...device, signingKey: other }, 9_000, 1),
      makeKemPrekeys({ ...device, deviceId: 'tablet' }, 9_000, 1),
      makeKemPrekeys({ ...device, userId: 'somebody' }, 9_000, 1),
      makeKemPrekeys(tablet, 9_000, 1),
      makeKemPrekeys({ ...device, signingKey: device.rootKey }, 9_000, 1),
    ])
      expect(await refusalOf(client.replenishPrekeys({ requestId: randomUUID(), oneTimeKemPrekeys }))).toMatchObject({
        code: Code.InvalidArgument,
        reason: 'SIGNATURE_INVALID',
        metadata: { field: 'one_time_kem_prekeys[0].signature', key_id: '9000' },
      });
    expect(await stored(device.userId)).toEqual(before);
  });

  test('that are valid are stored whole, in the order of the upload', async () => {
    const ids = fc.uniqueArray(fc.integer({ min: 10, max: 4_294_967_295 }), { minLength: 1, maxLength: 4 });
    await fc.assert(
      fc.asyncProperty(ids, async (keyIds) => {
        const target = await newDevice();
        const oneTimePrekeys = keyIds.flatMap((keyId) => makeOneTimePrekeys(keyId, 1));
        const oneTimeKemPrekeys: KemPrekey[] = keyIds.flatMap((keyId) => makeKemPrekeys(target, keyId, 1));
        const { counts } = await (await service.asDevice(target)).replenishPrekeys({
          requestId: randomUUID(),
          oneTimePrekeys,
          oneTimeKemPrekeys,
        });
        expect(counts).toMatchObject({ oneTime: keyIds.length + 1, kem: keyIds.length + 1 });
        const [row] = await stored(target.userId);
        expect(row?.one_time).toEqual([expect.any(String), ...(named(oneTimePrekeys) ?? [])]);
        expect(row?.kem).toEqual([expect.any(String), ...(named(oneTimeKemPrekeys) ?? [])]);
      }),
      { numRuns: 10 },
    );
  });

  test('of ten uploads at once never overfill a pool, over two replicas', async () => {
    const target = await newDevice();
    const outcomes = await Promise.allSettled(
      Array.from({ length: 10 }, async (_, i) => {
        const client = await service.asDevice(target, { replica: i % 2 });
        const first = 100 + i * 20;
        const oneTimePrekeys = makeOneTimePrekeys(first, 12);
        return client.replenishPrekeys({
          requestId: randomUUID(),
          oneTimePrekeys,
          oneTimeKemPrekeys: makeKemPrekeys(target, first, 5),
        });
      }),
    );
    // 1 key is there; four uploads of 12 fit under 50, whichever they are.
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(4);
    for (const outcome of outcomes)
      if (outcome.status === 'rejected')
        expect(await refusalOf(Promise.reject(outcome.reason))).toMatchObject({
          code: Code.ResourceExhausted,
          reason: 'PREKEY_POOL_FULL',
          metadata: { limit: String(poolBound), field: 'one_time_prekeys' },
        });
    const [row] = await stored(target.userId);
    expect(row?.one_time).toHaveLength(49);
    expect(row?.kem).toHaveLength(21);
    expect(row).toMatchObject({ one_time_ever: 49n, kem_ever: 21n });
  });

  test('of more than 100 of a kind in a call are refused', async () => {
    const client = await service.asDevice(device);
    const before = await stored(device.userId);
    const [kem] = makeKemPrekeys(device, 20_000, 1);
    if (!kem) throw new Error('no prekey');
    const tooMany = [
      { oneTimePrekeys: makeOneTimePrekeys(20_000, 101) },
      { oneTimeKemPrekeys: Array.from({ length: 101 }, (_, i) => ({ ...kem, keyId: 20_000 + i })) },
    ];
    for (const upload of tooMany)
      expect(await refusalOf(client.replenishPrekeys({ requestId: randomUUID(), ...upload }))).toMatchObject({
        code: Code.InvalidArgument,
        reason: 'INVALID_FIELD',
        fields: [{ field: Object.keys(upload)[0] === 'oneTimePrekeys' ? 'one_time_prekeys' : 'one_time_kem_prekeys' }],
      });
    expect(await stored(device.userId)).toEqual(before);
  });
});

const rotations: fc.Arbitrary<Mutation<RotateSignedPrekeyRequest>> = fc.oneof(
  fc.tuple(fc.boolean(), fc.boolean(), anyBit).map(
    ([signed, ofKey, bit]): Mutation<RotateSignedPrekeyRequest> => [
      `bit ${bit} of the ${signed ? 'signed' : 'last-resort'} prekey's ${ofKey ? 'key' : 'signature'}`,
      ['SIGNATURE_INVALID', 'KEY_INVALID'],
      ({ signedPrekey, lastResortPrekey }) => {
        const prekey = signed ? signedPrekey : lastResortPrekey;
        if (!prekey) return;
        if (ofKey) prekey.publicKey = flipped(prekey.publicKey, bit);
        else prekey.signature = flipped(prekey.signature, bit);
      },
    ],
  ),
  fc.tuple(fc.boolean(), fc.integer({ min: 1, max: 1_000 })).map(
    ([signed, by]): Mutation<RotateSignedPrekeyRequest> => [
      `another id by ${by}`,
      ['SIGNATURE_INVALID'],
      ({ signedPrekey, lastResortPrekey }) => {
        const prekey = signed ? signedPrekey : lastResortPrekey;
        if (prekey) prekey.keyId += by;
      },
    ],
  ),
  fc.constantFrom<Mutation<RotateSignedPrekeyRequest>>(
    [
      'the signatures swapped',
      ['SIGNATURE_INVALID'],
      ({ signedPrekey, lastResortPrekey }) => {
        if (signedPrekey && lastResortPrekey)
          [signedPrekey.signature, lastResortPrekey.signature] = [lastResortPrekey.signature, signedPrekey.signature];
      },
    ],
    [
      'a signed prekey of zeros',
      ['KEY_INVALID'],
      ({ signedPrekey }) => {
        if (signedPrekey) signedPrekey.publicKey = new Uint8Array(32);
      },
    ],
    [
      'a last-resort prekey beyond the modulus',
      ['KEY_INVALID'],
      ({ lastResortPrekey }) => {
        if (lastResortPrekey) lastResortPrekey.publicKey = new Uint8Array(1184).fill(0xff);
      },
    ],
    [
      'a last-resort prekey that is one byte short',
      ['INVALID_FIELD'],
      ({ lastResortPrekey }) => {
        if (lastResortPrekey) lastResortPrekey.publicKey = lastResortPrekey.publicKey.slice(1);
      },
    ],
  ),
);

describe('a rotation', () => {
  let device: TestDevice;
  let lastId = 100;
  beforeAll(async () => {
    device = await newDevice();
  });

  const rotation = (signer: Parameters<typeof createSignedPrekey>[1], keyId: number) =>
    create(RotateSignedPrekeyRequestSchema, {
      requestId: randomUUID(),
      signedPrekey: createSignedPrekey(nodePrimitives, signer, keyId).upload,
      lastResortPrekey: createKemPrekey(nodePrimitives, signer, keyId, 'kem-last-resort').upload,
    });

  test('with any one thing changed is refused as bad input, and the current prekeys stay', async () => {
    const client = await service.asDevice(device);
    const before = await stored(device.userId);
    await fc.assert(
      fc.asyncProperty(rotations, async ([, reasons, change]) => {
        lastId += 2_000;
        const changed = rotation(device, lastId);
        change(changed);
        const refusal = await refusalOf(client.rotateSignedPrekey(changed));
        expect(reasons).toContain(refusal.reason);
        expect(refusal.code).toBe(Code.InvalidArgument);
        expect(refusal.fields[0]?.field).toMatch(/^(signed|last_resort)_prekey\./);
        expect(await stored(device.userId)).toEqual(before);
      }),
      runs,
    );
  });

  test('is verified with the stored signing key, and a one-time KEM prekey cannot be passed off as the last resort', async () => {
    const client = await service.asDevice(device);
    const before = await stored(device.userId);
    const [oneTime] = makeKemPrekeys(device, 90, 1);
    const hostile = [
      rotation({ ...device, signingKey: nodePrimitives.ed25519.keyPair() }, 90),
      rotation({ ...device, signingKey: device.rootKey }, 90),
      rotation({ ...device, deviceId: 'tablet' }, 90),
      { requestId: randomUUID(), lastResortPrekey: oneTime as KemPrekey },
    ];
    for (const request of hostile)
      expect(await refusalOf(client.rotateSignedPrekey(request))).toMatchObject({
        code: Code.InvalidArgument,
        reason: 'SIGNATURE_INVALID',
        metadata: { key_id: '90' },
      });
    expect(await stored(device.userId)).toEqual(before);
  });

  test('that is valid is stored as it came', async () => {
    const target = await newDevice();
    const request = rotation(target, 70);
    await (await service.asDevice(target)).rotateSignedPrekey(request);
    const [row] = await stored(target.userId);
    for (const [kind, prekey] of [
      ['signed', request.signedPrekey],
      ['last_resort', request.lastResortPrekey],
    ] as const)
      expect(row?.[kind]).toContainEqual(
        expect.objectContaining({
          key_id: 70,
          public_key: `\\x${hexOf(prekey?.publicKey ?? new Uint8Array())}`,
          signature: `\\x${hexOf(prekey?.signature ?? new Uint8Array())}`,
        }),
      );
  });
});
