import { randomUUID } from 'node:crypto';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import { type KemPrekey, type PrekeyBundle, PrekeyKind, type SignedPrekey } from '@keytrail/contracts';
import { createKemPrekey, createSignedPrekey, prekeyStatement, type Ref } from '@keytrail/crypto';
import { nodePrimitives, verifySignatures } from '@keytrail/crypto/node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeKemPrekeys, type TestDevice } from './device-keys.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';

let service: IdentityKeysUnderTest;
beforeAll(async () => {
  service = await startIdentityKeys({ replicas: 2, settings: { KEYTRAIL_PREKEY_GRACE_MS: '864000000' } });
});
afterAll(() => service?.stop());

async function newDevice(oneTime = 0): Promise<TestDevice> {
  return (await service.register({ userId: newUser(), deviceId: 'phone', oneTime, kem: oneTime })).device;
}

const signedPrekey = (device: TestDevice, keyId: number) => createSignedPrekey(nodePrimitives, device, keyId).upload;
const lastResort = (device: TestDevice, keyId: number) =>
  createKemPrekey(nodePrimitives, device, keyId, 'kem-last-resort').upload;

interface Rotation {
  readonly requestId?: string;
  readonly signedPrekey?: SignedPrekey;
  readonly lastResortPrekey?: KemPrekey;
}

async function rotate(device: Ref, rotation: Rotation, replica = 0) {
  return (await service.asDevice(device, { replica })).rotateSignedPrekey({ requestId: randomUUID(), ...rotation });
}

async function claim({ userId, deviceId }: Ref, claimId: string = randomUUID(), replica = 0): Promise<PrekeyBundle> {
  const claimed = { claimId, devices: [{ userId, deviceId }] };
  const bundle = (await service.asService('session', { replica }).claimPrekeyBundles(claimed)).results[0]?.bundle;
  if (!bundle) throw new Error('no bundle');
  return bundle;
}

const current = async (device: Ref) => {
  const { signedPrekey, kemPrekey } = await claim(device);
  return [signedPrekey, kemPrekey];
};

describe('a rotation', () => {
  test('makes new prekeys the ones that are handed out, and tells how long the old ones are needed', async () => {
    const device = await newDevice();
    const rotation = { signedPrekey: signedPrekey(device, 7), lastResortPrekey: lastResort(device, 9) };
    const before = Date.now();
    const { keepOldUntil, counts } = await rotate(device, rotation);
    const kept = keepOldUntil ? timestampDate(keepOldUntil).getTime() - 864_000_000 : 0;
    expect(kept).toBeGreaterThanOrEqual(before);
    expect(kept).toBeLessThanOrEqual(Date.now());
    expect(counts).toMatchObject({ oneTime: 0, kem: 0 });
    expect(await current(device)).toEqual([rotation.signedPrekey, rotation.lastResortPrekey]);
    const { deviceLists } = await service.asService('session').getDevices({ userIds: [device.userId] });
    expect(deviceLists[0]?.devices[0]).toMatchObject(rotation);
    const { status } = await (await service.asDevice(device)).getPrekeyStatus({});
    expect(status).toMatchObject({ signedPrekeyId: 7, lastResortPrekeyId: 9 });
  });

  test('of one kind leaves the other as it is', async () => {
    const device = await newDevice();
    const [oldSigned, oldLastResort] = await current(device);
    const next = signedPrekey(device, 2);
    await rotate(device, { signedPrekey: next });
    expect(await current(device)).toEqual([next, oldLastResort]);
    expect(oldSigned?.keyId).toBe(1);
  });

  test('leaves claims that were answered before answerable: a repetition gets the old prekeys', async () => {
    const device = await newDevice();
    const claimId = randomUUID();
    const before = await claim(device, claimId);
    await rotate(device, { signedPrekey: signedPrekey(device, 2), lastResortPrekey: lastResort(device, 2) });
    expect(await claim(device, claimId, 1)).toEqual(before);
  });

  test('makes a prekey that was overdue no longer so', async () => {
    const device = await newDevice();
    for (const table of ['signed_prekeys', 'last_resort_prekeys'])
      await service.db.pool.query(
        `UPDATE ${table} SET added_at = now() - interval '99 days'
          WHERE device_number = (SELECT device_number FROM devices WHERE user_id = $1)`,
        [device.userId],
      );
    const client = await service.asDevice(device);
    const due = { signedPrekeyDue: true, lastResortPrekeyDue: true };
    expect((await client.getPrekeyStatus({})).status).toMatchObject(due);
    await rotate(device, { signedPrekey: signedPrekey(device, 2), lastResortPrekey: lastResort(device, 2) });
    expect((await client.getPrekeyStatus({})).status).toMatchObject({
      signedPrekeyDue: false,
      lastResortPrekeyDue: false,
    });
  });
});

describe('a prekey that was uploaded before', () => {
  test('is a no-op while it is current, and a conflict once it was replaced: it never becomes current again', async () => {
    const device = await newDevice();
    const first = { signedPrekey: signedPrekey(device, 2), lastResortPrekey: lastResort(device, 2) };
    const second = { signedPrekey: signedPrekey(device, 3), lastResortPrekey: lastResort(device, 3) };
    const requestId = randomUUID();
    const answered = await rotate(device, { requestId, ...first });
    await rotate(device, first);
    expect(await current(device)).toEqual([first.signedPrekey, first.lastResortPrekey]);
    await rotate(device, second);
    for (const [rotation, field] of [
      [{ signedPrekey: first.signedPrekey }, 'signed_prekey.key_id'],
      [{ lastResortPrekey: first.lastResortPrekey }, 'last_resort_prekey.key_id'],
    ] as const)
      expect(await refusalOf(rotate(device, rotation))).toMatchObject({
        code: Code.AlreadyExists,
        reason: 'PREKEY_ID_CONFLICT',
        metadata: { field, key_id: '2' },
      });
    expect(await rotate(device, { requestId, ...first })).toEqual(answered);
    expect(await current(device)).toEqual([second.signedPrekey, second.lastResortPrekey]);
  });

  test('with another key under its id is a conflict, and nothing of the rotation stays', async () => {
    const device = await newDevice(1);
    const before = await current(device);
    await claim(device);
    for (const [rotation, field] of [
      [{ signedPrekey: signedPrekey(device, 1) }, 'signed_prekey.key_id'],
      [{ signedPrekey: signedPrekey(device, 5), lastResortPrekey: lastResort(device, 1) }, 'last_resort_prekey.key_id'],
      // 2 is the id of a one-time KEM prekey that was claimed.
      [{ signedPrekey: signedPrekey(device, 5), lastResortPrekey: lastResort(device, 2) }, 'last_resort_prekey.key_id'],
    ] as const)
      expect(await refusalOf(rotate(device, rotation))).toMatchObject({
        reason: 'PREKEY_ID_CONFLICT',
        metadata: { field },
      });
    expect((await current(device))[0]).toEqual(before[0]);
  });

  test('as last resort keeps its id from one-time KEM prekeys', async () => {
    const device = await newDevice();
    await rotate(device, { lastResortPrekey: lastResort(device, 40) });
    const client = await service.asDevice(device);
    const upload = { requestId: randomUUID(), oneTimeKemPrekeys: makeKemPrekeys(device, 40, 1) };
    expect(await refusalOf(client.replenishPrekeys(upload))).toMatchObject({ reason: 'PREKEY_ID_CONFLICT' });
  });
});

describe.for(wires)('over %s a rotation', (wire) => {
  test('is verified against the signing key that is stored', async () => {
    const [device, stranger] = [await newDevice(), await newDevice()];
    const client = await service.asDevice(device, { wire });
    const foreign = { ...stranger, userId: device.userId, deviceId: device.deviceId };
    for (const [rotation, field] of [
      [{ signedPrekey: signedPrekey(foreign, 2) }, 'signed_prekey.signature'],
      [{ lastResortPrekey: lastResort(foreign, 2) }, 'last_resort_prekey.signature'],
      // Signed by the right key, as a one-time prekey.
      [{ lastResortPrekey: makeKemPrekeys(device, 2, 1)[0] as KemPrekey }, 'last_resort_prekey.signature'],
    ] as const)
      expect(await refusalOf(client.rotateSignedPrekey({ requestId: randomUUID(), ...rotation }))).toMatchObject({
        code: Code.InvalidArgument,
        reason: 'SIGNATURE_INVALID',
        metadata: { field, key_id: '2' },
      });
  });

  test('with a key that breaks a rule, or without keys, is refused with its field', async () => {
    const device = await newDevice();
    const client = await service.asDevice(device, { wire });
    const rotating = (rotation: object) => client.rotateSignedPrekey({ requestId: randomUUID(), ...rotation });
    const signed = signedPrekey(device, 2);
    const kem = lastResort(device, 2);
    expect(await refusalOf(rotating({ signedPrekey: { ...signed, publicKey: new Uint8Array(32) } }))).toMatchObject({
      reason: 'KEY_INVALID',
      metadata: { field: 'signed_prekey.public_key', key_id: '2', rule: 'low-order' },
    });
    expect(
      await refusalOf(rotating({ lastResortPrekey: { ...kem, publicKey: new Uint8Array(1184).fill(255) } })),
    ).toMatchObject({ reason: 'KEY_INVALID', metadata: { field: 'last_resort_prekey.public_key' } });
    expect(await refusalOf(rotating({}))).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
    for (const [rotation, field] of [
      [{ signedPrekey: { ...signed, keyId: 0 } }, 'signed_prekey.key_id'],
      [{ signedPrekey: { ...signed, publicKey: new Uint8Array(31) } }, 'signed_prekey.public_key'],
      [{ signedPrekey: { ...signed, signature: new Uint8Array() } }, 'signed_prekey.signature'],
      [{ lastResortPrekey: { ...kem, keyId: 0 } }, 'last_resort_prekey.key_id'],
      [{ lastResortPrekey: { ...kem, publicKey: new Uint8Array(2000) } }, 'last_resort_prekey.public_key'],
      [{ lastResortPrekey: { ...kem, signature: new Uint8Array(63) } }, 'last_resort_prekey.signature'],
      [{ signedPrekey: signed, requestId: 'none' }, 'request_id'],
    ] as const) {
      const refusal = await refusalOf(rotating(rotation));
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
      expect(refusal.fields.map((problem) => problem.field)).toContain(field);
    }
    expect((await current(device))[0]?.keyId).toBe(1);
  });

  test('of a device that is not registered, or was revoked, is refused', async () => {
    const device = await newDevice();
    const rotation = { requestId: randomUUID(), signedPrekey: signedPrekey(device, 2) };
    const stranger = await service.asDevice({ ...device, deviceId: 'tablet' }, { wire });
    expect(await refusalOf(stranger.rotateSignedPrekey(rotation))).toMatchObject({ reason: 'DEVICE_NOT_REGISTERED' });
    expect(await refusalOf(service.asService('session').rotateSignedPrekey(rotation))).toMatchObject({
      reason: 'CALLER_NOT_ALLOWED',
    });
    await service.revoke(device.userId);
    const revoked = await service.asDevice(device, { wire });
    expect(await refusalOf(revoked.rotateSignedPrekey(rotation))).toMatchObject({ reason: 'DEVICE_REVOKED' });
  });
});

describe('while twenty claimers claim on two replicas', () => {
  test('a rotation leaves each bundle whole: every prekey is one that was current, with its own signature', async () => {
    const device = await newDevice(40);
    const uploads = Array.from({ length: 12 }, (_, i) => ({
      signedPrekey: signedPrekey(device, 100 + i),
      lastResortPrekey: lastResort(device, 100 + i),
    }));
    const bundles: PrekeyBundle[] = [];
    let over = false;
    const claimers = Array.from({ length: 20 }, async (_, i) => {
      while (!over) bundles.push(await claim(device, randomUUID(), i % 2));
    });
    for (const [i, upload] of uploads.entries()) await rotate(device, upload, i % 2);
    over = true;
    await Promise.all(claimers);

    const signer = { ...device, signingKey: device.signingKey.publicKey };
    const held = await verifySignatures(
      bundles.flatMap(({ signedPrekey, kemPrekey, kemPrekeyKind }) => [
        prekeyStatement('signed-prekey', signer, signedPrekey as SignedPrekey),
        prekeyStatement(
          kemPrekeyKind === PrekeyKind.ONE_TIME ? 'kem-one-time' : 'kem-last-resort',
          signer,
          kemPrekey as KemPrekey,
        ),
      ]),
    );
    expect(held.every(Boolean)).toBe(true);
    const oneTime = bundles.flatMap(({ oneTimePrekey }) => (oneTimePrekey ? [oneTimePrekey.keyId] : []));
    expect([oneTime.length, new Set(oneTime).size]).toEqual([40, 40]);
    // Signed and last-resort prekey of a bundle were current together: this device rotates both at once.
    const pairs = bundles
      .filter(({ kemPrekeyKind }) => kemPrekeyKind === PrekeyKind.LAST_RESORT)
      .map(({ signedPrekey, kemPrekey }) => [signedPrekey?.keyId, kemPrekey?.keyId]);
    expect(pairs.filter(([signed, kem]) => signed !== kem)).toEqual([]);
    expect((await current(device)).map((key) => key?.keyId)).toEqual([111, 111]);
  });
});
