import { randomUUID } from 'node:crypto';
import { Code } from '@connectrpc/connect';
import type { RegisterDeviceRequest } from '@keytrail/contracts';
import { statement } from '@keytrail/storage';
import { ED25519_TORSION_SUBGROUP, ed25519 } from '@noble/curves/ed25519.js';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeDevice, makeKemPrekeys, makeOneTimePrekeys } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

const ff = 'ff'.repeat(30);
const zeros = '00'.repeat(30);

/** D. J. Bernstein, cr.yp.to/ecdh.html ("How do I validate Curve25519 public keys?"), all twelve; RFC 7748 §6.1 warns of the same. */
const bernstein = [
  `00${zeros}00`,
  `01${zeros}00`,
  'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800',
  '5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157',
  `ec${ff}7f`,
  `ed${ff}7f`,
  `ee${ff}7f`,
  'cdeb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880',
  '4c9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7',
  `d9${ff}ff`,
  `da${ff}ff`,
  `db${ff}ff`,
];

/** "Taming the many EdDSAs" (IACR ePrint 2020/1244), table 6: the eight torsion points, and their encodings that are not canonical. */
const torsion = [
  `01${zeros}00`,
  `ec${ff}7f`,
  `00${zeros}80`,
  `00${zeros}00`,
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa',
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85',
  `01${zeros}80`,
  `ec${ff}ff`,
  `ee${ff}7f`,
  `ee${ff}ff`,
  `ed${ff}ff`,
  `ed${ff}7f`,
];

/** The mixed-order keys of the same paper's vectors, and a good key plus each torsion point. */
const mixedOrder = [
  'f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43',
  'cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d',
  ...ED25519_TORSION_SUBGROUP.map((encoded) => ed25519.Point.fromHex(encoded))
    .filter((point) => !point.is0())
    .map((point) => ed25519.Point.BASE.multiply(1234567n).add(point).toHex()),
];

const bytes = (digits: string) => new Uint8Array(Buffer.from(digits, 'hex'));
const countUsers = statement('test_count_user', 'SELECT count(*) AS users FROM users WHERE user_id = $1');

type Place = readonly [field: string, put: (upload: RegisterDeviceRequest, key: Uint8Array) => void];

const edwards: Place[] = [
  ['signing_key', (upload, key) => Object.assign(upload, { signingKey: key })],
  ['certificate.root_key', (upload, key) => Object.assign(upload.certificate ?? {}, { rootKey: key })],
];
const montgomery: Place[] = [
  ['identity_key', (upload, key) => Object.assign(upload, { identityKey: key })],
  ['signed_prekey.public_key', (upload, key) => Object.assign(upload.signedPrekey ?? {}, { publicKey: key })],
  [
    'one_time_prekeys[1].public_key',
    (upload, key) => Object.assign(upload.oneTimePrekeys[1] ?? {}, { publicKey: key }),
  ],
];
const lattice: Place[] = [
  ['last_resort_prekey.public_key', (upload, key) => Object.assign(upload.lastResortPrekey ?? {}, { publicKey: key })],
  [
    'one_time_kem_prekeys[2].public_key',
    (upload, key) => Object.assign(upload.oneTimeKemPrekeys[2] ?? {}, { publicKey: key }),
  ],
];

async function expectRefused([field, put]: Place, key: Uint8Array, rules: readonly string[]) {
  const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone' });
  put(registration, key);
  const refusal = await refusalOf((await service.asDevice(device)).registerDevice(registration));
  expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'KEY_INVALID', metadata: { field } });
  expect(rules).toContain(refusal.metadata.rule);
  expect(refusal.fields.map((problem) => problem.field)).toEqual([field]);
  expect(await service.db.query(countUsers, [device.userId])).toEqual([{ users: 0n }]);
}

describe.for(montgomery)('%s', (place) => {
  test('is none of the points of small order that Bernstein and RFC 7748 list', async () => {
    for (const key of bernstein) await expectRefused(place, bytes(key), ['low-order', 'not-canonical']);
  });
});

describe.for(edwards)('%s', (place) => {
  test('is none of the torsion points of "Taming the many EdDSAs", in whatever encoding', async () => {
    for (const key of torsion) await expectRefused(place, bytes(key), ['low-order']);
  });

  test('is no key of mixed order', async () => {
    for (const key of mixedOrder) await expectRefused(place, bytes(key), ['torsion']);
  });
});

describe('identity_key', () => {
  const place = montgomery[0] as Place;
  test('is no point of mixed order, and none of the twist', async () => {
    for (const key of mixedOrder) await expectRefused(place, ed25519.utils.toMontgomery(bytes(key)), ['torsion']);
    await expectRefused(place, bytes(`02${zeros}00`), ['not-a-point']);
  });
});

describe.for(lattice)('%s', (place) => {
  test('has no coefficient of 3329 or more, at the ends or within (FIPS 203 §7.2)', async () => {
    for (const position of [0, 1, 255, 256, 511, 512, 766, 767])
      for (const value of [3329, 4095]) {
        const [prekey] = makeKemPrekeys(makeDevice({ userId: 'u', deviceId: 'd' }).device, 1, 1);
        const key = prekey?.publicKey.slice() ?? new Uint8Array();
        const at = Math.floor(position / 2) * 3;
        const [a = 0, b = 0, c = 0] = key.slice(at, at + 3);
        const [low, high] = position % 2 === 0 ? [value, (b >> 4) | (c << 4)] : [a | ((b & 15) << 8), value];
        key.set([low & 255, (low >> 8) | ((high & 15) << 4), high >> 4], at);
        await expectRefused(place, key, ['modulus']);
      }
  });
});

test('one-time prekeys of small order are refused at a refill too, each with its path, id and rule', async () => {
  const { device } = await service.register({ userId: newUser(), deviceId: 'phone' });
  const oneTimePrekeys = makeOneTimePrekeys(100, bernstein.length);
  for (const [i, key] of bernstein.entries()) Object.assign(oneTimePrekeys[i] ?? {}, { publicKey: bytes(key) });
  const client = await service.asDevice(device);
  const refusal = await refusalOf(client.replenishPrekeys({ requestId: randomUUID(), oneTimePrekeys }));
  expect(refusal).toMatchObject({
    reason: 'KEY_INVALID',
    metadata: { field: 'one_time_prekeys[0].public_key', key_id: '100', rule: 'low-order' },
  });
  expect(refusal.fields.map(({ field }) => field)).toEqual(
    bernstein.map((_, i) => `one_time_prekeys[${i}].public_key`),
  );
});
