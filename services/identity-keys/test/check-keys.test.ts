import { randomUUID } from 'node:crypto';
import { create } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import { type CheckKeysRequest, CheckKeysRequestSchema, type RegisterDeviceRequest } from '@keytrail/contracts';
import {
  createKemPrekey,
  createSignedPrekey,
  fingerprintOf,
  type PrekeyHash,
  type PublishedKeys,
  publicKeyHash,
  publishedKeysDigest,
} from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { forgetOldClaims } from '../src/jobs/forget-old-claims.ts';
import { makeDevice, makeKemPrekeys, makeOneTimePrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

const hashes = (prekeys: readonly { keyId: number; publicKey: Uint8Array }[]): PrekeyHash[] =>
  prekeys.map(({ keyId, publicKey }) => ({ keyId, hash: publicKeyHash(publicKey) }));

/** What the device holds, as it registered. */
function heldBy(device: TestDevice, registration: RegisterDeviceRequest): PublishedKeys {
  const [signedPrekey, lastResortPrekey] = hashes([
    registration.signedPrekey as { keyId: number; publicKey: Uint8Array },
    registration.lastResortPrekey as { keyId: number; publicKey: Uint8Array },
  ]) as [PrekeyHash, PrekeyHash];
  return {
    userId: device.userId,
    deviceId: device.deviceId,
    identityKey: registration.identityKey,
    signingKey: registration.signingKey,
    certificateSignature: registration.certificate?.signature as Uint8Array,
    signedPrekey,
    lastResortPrekey,
    oneTimePrekeys: hashes(registration.oneTimePrekeys),
    oneTimeKemPrekeys: hashes(registration.oneTimeKemPrekeys),
  };
}

function requestOf(held: PublishedKeys): CheckKeysRequest {
  const named = (prekey: PrekeyHash) => ({ keyId: prekey.keyId, fingerprint: fingerprintOf(prekey) });
  return create(CheckKeysRequestSchema, {
    digest: publishedKeysDigest(held),
    signedPrekey: named(held.signedPrekey),
    lastResortPrekey: named(held.lastResortPrekey),
    oneTimePrekeys: held.oneTimePrekeys.map(named),
    oneTimeKemPrekeys: held.oneTimeKemPrekeys.map(named),
  });
}

async function registered(oneTime = 3) {
  const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone', oneTime, kem: oneTime });
  await (await service.asDevice(device)).registerDevice(registration);
  return { device, held: heldBy(device, registration) };
}

async function check(device: TestDevice, held: PublishedKeys) {
  return (await service.asDevice(device)).checkKeys(requestOf(held));
}

async function claim({ userId, deviceId }: TestDevice) {
  await service.asService('session').claimPrekeyBundles({ claimId: randomUUID(), devices: [{ userId, deviceId }] });
}

const none = { neverUploaded: [], otherKey: [], notHeld: [] };
const nothing = {
  matches: true,
  identityDiffers: false,
  signedPrekeyDiffers: false,
  lastResortPrekeyDiffers: false,
  oneTimePrekeys: { ...none, claimed: 0 },
  oneTimeKemPrekeys: { ...none, claimed: 0 },
};

describe('a device that holds just what it published', () => {
  test('is told that all matches, with its status', async () => {
    const { device, held } = await registered();
    expect(await check(device, held)).toMatchObject({
      ...nothing,
      status: { counts: { oneTime: 3, kem: 3 }, signedPrekeyId: 1, lastResortPrekeyId: 1 },
    });
  });

  test('still matches when prekeys were claimed, and is told how many wait for their envelopes', async () => {
    const { device, held } = await registered();
    await claim(device);
    await claim(device);
    expect(await check(device, held)).toMatchObject({
      ...nothing,
      oneTimePrekeys: { ...none, claimed: 2 },
      oneTimeKemPrekeys: { ...none, claimed: 2 },
      status: { counts: { oneTime: 1, kem: 1 } },
    });
    const [, ...rest] = held.oneTimePrekeys;
    expect(await check(device, { ...held, oneTimePrekeys: rest })).toMatchObject({
      matches: true,
      oneTimePrekeys: { ...none, claimed: 1 },
    });
  });

  test('still matches when of its claimed prekeys only the hashes are left here', async () => {
    const { device, held } = await registered();
    await claim(device);
    await service.db.pool.query("UPDATE claims SET claimed_at = now() - interval '8 days'");
    await forgetOldClaims(service.db);
    const { rows } = await service.db.pool.query(
      `SELECT count(*) AS shrunk FROM one_time_kem_prekeys k JOIN devices USING (device_number)
        WHERE user_id = $1 AND public_key IS NULL`,
      [device.userId],
    );
    expect(rows).toEqual([{ shrunk: 1n }]);
    expect(await check(device, held)).toMatchObject({ matches: true, oneTimeKemPrekeys: { ...none, claimed: 1 } });
  });

  test('does not count prekeys that it retired as claimed', async () => {
    const { device, held } = await registered();
    const client = await service.asDevice(device);
    await client.replenishPrekeys({ requestId: randomUUID(), retireOneTimeKeyIds: [1], retireKemKeyIds: [2, 3] });
    expect(await check(device, held)).toMatchObject(nothing);
  });

  test('matches with two thousand prekeys of a kind, and without any', async () => {
    const { device, held } = await registered(0);
    expect(await check(device, held)).toMatchObject(nothing);
    const many = Array.from({ length: 2000 }, (_, i) => ({ keyId: i + 1, hash: publicKeyHash(new Uint8Array([i])) }));
    const answer = await check(device, { ...held, oneTimePrekeys: many });
    expect(answer).toMatchObject({ matches: false, identityDiffers: false });
    expect(answer.oneTimePrekeys?.neverUploaded).toHaveLength(2000);
  });
});

describe('what differs is named', () => {
  test('prekeys that were never uploaded, are another’s, or are not held any more', async () => {
    const { device, held } = await registered(4);
    const [first, second, third] = held.oneTimePrekeys as [PrekeyHash, PrekeyHash, PrekeyHash];
    const other = { keyId: third.keyId, hash: publicKeyHash(new Uint8Array([3])) };
    const fresh = hashes(makeOneTimePrekeys(70, 2));
    expect(await check(device, { ...held, oneTimePrekeys: [first, second, other, ...fresh] })).toMatchObject({
      ...nothing,
      matches: false,
      oneTimePrekeys: { neverUploaded: [70, 71], otherKey: [3], notHeld: [4], claimed: 0 },
    });
  });

  test('a one-time KEM prekey under the id of a last-resort prekey: the id is used up', async () => {
    const { device, held } = await registered(1);
    const clash = hashes(makeKemPrekeys(device, 1, 1));
    expect(await check(device, { ...held, oneTimeKemPrekeys: [...clash, ...held.oneTimeKemPrekeys] })).toMatchObject({
      matches: false,
      oneTimeKemPrekeys: { ...none, otherKey: [1] },
    });
  });

  test('prekeys in the pool that the device lost, though all that it names is right', async () => {
    const { device, held } = await registered();
    expect(await check(device, { ...held, oneTimePrekeys: [], oneTimeKemPrekeys: [] })).toMatchObject({
      ...nothing,
      matches: false,
      oneTimePrekeys: { ...none, notHeld: [1, 2, 3] },
      oneTimeKemPrekeys: { ...none, notHeld: [2, 3, 4] },
    });
  });

  test('another signed or last-resort prekey, by id or by key', async () => {
    const { device, held } = await registered();
    const [signedPrekey, lastResortPrekey] = hashes([
      createSignedPrekey(nodePrimitives, device, 1).upload,
      createKemPrekey(nodePrimitives, device, 9, 'kem-last-resort').upload,
    ]) as [PrekeyHash, PrekeyHash];
    expect(await check(device, { ...held, signedPrekey })).toMatchObject({
      ...nothing,
      matches: false,
      signedPrekeyDiffers: true,
    });
    expect(await check(device, { ...held, lastResortPrekey })).toMatchObject({
      ...nothing,
      matches: false,
      lastResortPrekeyDiffers: true,
    });
  });

  test.for(['identityKey', 'signingKey', 'certificateSignature'] as const)(
    'another %s: the identity differs',
    async (part) => {
      const { device, held } = await registered();
      const changed = held[part].map((byte, i) => (i === 0 ? byte ^ 1 : byte));
      expect(await check(device, { ...held, [part]: changed })).toMatchObject({
        ...nothing,
        matches: false,
        identityDiffers: true,
      });
    },
  );
});

describe.for(wires)('a request over %s', (wire) => {
  test('whose ids are not ascending, or stand twice, is refused with the field', async () => {
    const { device, held } = await registered();
    const client = await service.asDevice(device, { wire });
    const request = requestOf(held);
    const twice = [...request.oneTimePrekeys, ...request.oneTimePrekeys.slice(-1)];
    const reversed = request.oneTimeKemPrekeys.toReversed();
    for (const [changes, field] of [
      [{ oneTimePrekeys: twice }, 'one_time_prekeys[3].key_id'],
      [{ oneTimeKemPrekeys: reversed }, 'one_time_kem_prekeys[1].key_id'],
      [{ oneTimePrekeys: [{ keyId: 0, fingerprint: new Uint8Array(8) }] }, 'one_time_prekeys[0].key_id'],
      [{ oneTimePrekeys: [{ keyId: 1, fingerprint: new Uint8Array(9) }] }, 'one_time_prekeys[0].fingerprint'],
      [{ digest: new Uint8Array(31) }, 'digest'],
      [{ signedPrekey: undefined }, 'signed_prekey'],
      [{ lastResortPrekey: undefined }, 'last_resort_prekey'],
      [
        {
          oneTimeKemPrekeys: Array.from({ length: 2001 }, (_, i) => ({ keyId: i + 1, fingerprint: new Uint8Array(8) })),
        },
        'one_time_kem_prekeys',
      ],
    ] as const) {
      const { $typeName, ...whole } = request;
      const refusal = await refusalOf(client.checkKeys({ ...whole, ...changes } as CheckKeysRequest));
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
      expect(refusal.fields.map((problem) => problem.field)).toContain(field);
    }
  });

  test('of a device that is not registered, or was revoked, is refused', async () => {
    const { device, held } = await registered();
    const stranger = await service.asDevice({ ...device, deviceId: 'tablet' }, { wire });
    expect(await refusalOf(stranger.checkKeys(requestOf(held)))).toMatchObject({ reason: 'DEVICE_NOT_REGISTERED' });
    await service.revoke(device.userId);
    const revoked = await service.asDevice(device, { wire });
    expect(await refusalOf(revoked.checkKeys(requestOf(held)))).toMatchObject({ reason: 'DEVICE_REVOKED' });
  });
});
