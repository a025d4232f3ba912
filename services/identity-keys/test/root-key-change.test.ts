import { randomUUID } from 'node:crypto';
import { clone, create } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import {
  ChangeRootKeyRequestSchema,
  DeviceLogKind,
  RegisterDeviceRequestSchema,
  RevokedBy,
  type RootKeyChange,
} from '@keytrail/contracts';
import { createRootKey, type KeyPair } from '@keytrail/crypto';
import { nodePrimitives } from '@keytrail/crypto/node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeDevice } from './device-keys.ts';
import { eventsAbout } from './device-list-events.ts';
import { type IdentityKeysUnderTest, newUser, startIdentityKeys, wires } from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';
import { changeKeeping, rootKeyChangeOf } from './root-key-changing.ts';
import { verifiedLog } from './verified-log.ts';

let service: IdentityKeysUnderTest;
let strict: IdentityKeysUnderTest;
beforeAll(async () => {
  [service, strict] = await Promise.all([
    startIdentityKeys({ replicas: 2 }),
    startIdentityKeys({ settings: { KEYTRAIL_ROOT_KEY_RESET: 'refused' } }),
  ]);
});
afterAll(() => Promise.all([service?.stop(), strict?.stop()]));

/** A user with three devices: a list of version 3. */
async function threeDevices(on = service) {
  const userId = newUser();
  const { device: phone } = await on.register({ userId, deviceId: 'phone' });
  const { rootKey } = phone;
  const { device: laptop } = await on.register({ userId, deviceId: 'laptop', rootKey });
  const { device: tablet } = await on.register({ userId, deviceId: 'tablet', rootKey });
  return { userId, rootKey, phone, laptop, tablet, client: await on.asDevice(phone) };
}

const newRootKey = () => createRootKey(nodePrimitives);

describe('a change of the root key', () => {
  test.for(wires)('certifies the devices that stay anew, and revokes the others (%s)', async (wire) => {
    const { userId, phone, laptop } = await threeDevices();
    const client = await service.asDevice(phone, { wire });
    const to = newRootKey();
    const response = await client.changeRootKey(changeKeeping([phone, laptop], { version: 3n, to }));
    expect(response).toMatchObject({ deviceListVersion: 7n, revokedDeviceIds: ['tablet'] });
    const { entries, state } = await verifiedLog(service, userId);
    expect(entries.slice(3).map(({ kind, deviceId }) => [kind, deviceId])).toEqual([
      [DeviceLogKind.ROOT_KEY_CHANGED, ''],
      [DeviceLogKind.DEVICE_RECERTIFIED, 'phone'],
      [DeviceLogKind.DEVICE_RECERTIFIED, 'laptop'],
      [DeviceLogKind.DEVICE_REVOKED, 'tablet'],
    ]);
    expect(entries[6]?.revocation).toMatchObject({ by: RevokedBy.ROOT_KEY_CHANGE, revokingDeviceId: 'phone' });
    expect(Buffer.from(state.head)).toEqual(Buffer.from(response.logHead));
    expect(state.rootKeys.map(({ sinceVersion, signedByPrevious }) => [sinceVersion, signedByPrevious])).toEqual([
      [1n, true],
      [4n, true],
    ]);
    const [list] = (await client.getDevices({ userIds: [userId] })).deviceLists;
    expect(Buffer.from(list?.rootKey ?? [])).toEqual(Buffer.from(to.publicKey));
    expect(list?.devices.map(({ deviceId }) => deviceId)).toEqual(['phone', 'laptop']);
    for (const device of list?.devices ?? [])
      expect(Buffer.from(device.certificate?.rootKey ?? [])).toEqual(Buffer.from(to.publicKey));
  });

  test('goes for what comes after it: registrations and revocations by the new root key', async () => {
    const { userId, phone, rootKey, client } = await threeDevices();
    const to = newRootKey();
    await client.changeRootKey(changeKeeping([phone], { version: 3n, to }));
    expect(await refusalOf(service.register({ userId, deviceId: 'watch', rootKey }))).toMatchObject({
      reason: 'ROOT_KEY_MISMATCH',
    });
    await service.register({ userId, deviceId: 'watch', rootKey: to });
    const { entries } = await verifiedLog(service, userId);
    expect(entries).toHaveLength(8);
  });

  test('is an event, and one for each device that it revokes, in their order', async () => {
    const { userId, phone, client } = await threeDevices();
    const events = await eventsAbout(userId, service.natsUrl, 3n);
    const request = changeKeeping([phone], { version: 3n });
    await client.changeRootKey(request);
    await client.changeRootKey(request);
    const told = await events.next(3);
    await events.close();
    expect(told).toMatchObject([
      { userId, version: 4n, signedByPrevious: true },
      { userId, version: 6n, deviceId: 'laptop', revoked: true },
      { userId, version: 7n, deviceId: 'tablet', revoked: true },
    ]);
  });

  test('takes the prekeys of the devices that it revokes, and their numbers are told to session', async () => {
    const { userId, phone, client } = await threeDevices();
    await client.changeRootKey(changeKeeping([phone], { version: 3n }));
    const { rows } = await service.db.pool.query(
      `SELECT d.device_id, r.removed_one_time, r.removed_kem,
              (SELECT count(*)::integer FROM unclaimed_one_time_prekeys p WHERE p.device_number = d.device_number) AS left
         FROM devices d LEFT JOIN revocations r USING (user_id, device_id) WHERE d.user_id = $1 ORDER BY d.added_in_version`,
      [userId],
    );
    expect(rows).toEqual([
      { device_id: 'phone', removed_one_time: null, removed_kem: null, left: 3 },
      { device_id: 'laptop', removed_one_time: 3, removed_kem: 3, left: 0 },
      { device_id: 'tablet', removed_one_time: 3, removed_kem: 3, left: 0 },
    ]);
  });

  test('happens once of ten at the same time; the others meet another version', async () => {
    const { userId, phone, laptop, tablet } = await threeDevices();
    const outcomes = await Promise.all(
      Array.from({ length: 10 }, async (_, i) => {
        const client = await service.asDevice(phone, { replica: i % 2 });
        const call = client.changeRootKey(changeKeeping([phone, laptop, tablet], { version: 3n }));
        return call.then(
          () => 'made',
          async () => (await refusalOf(call)).reason,
        );
      }),
    );
    expect(outcomes.toSorted()).toEqual([...Array(9).fill('DEVICE_LIST_CONFLICT'), 'made']);
    expect((await verifiedLog(service, userId)).state.version).toBe(7n);
  });

  test('may be unsigned by the previous root key, and is a reset then, which the log and the event say', async () => {
    const { userId, phone, client } = await threeDevices();
    const events = await eventsAbout(userId, service.natsUrl, 3n);
    await client.changeRootKey(changeKeeping([phone], { version: 3n, signed: false }));
    const [told] = await events.next(1);
    await events.close();
    expect(told).toMatchObject({ signedByPrevious: false });
    const { state } = await verifiedLog(service, userId);
    expect(state.rootKeys.map(({ signedByPrevious }) => signedByPrevious)).toEqual([true, false]);
  });

  test('that is unsigned is refused where the deployment wants it signed', async () => {
    const { userId, phone, client } = await threeDevices(strict);
    expect(await refusalOf(client.changeRootKey(changeKeeping([phone], { version: 3n, signed: false })))).toMatchObject(
      {
        code: Code.PermissionDenied,
        reason: 'ROOT_KEY_RESET_NOT_ALLOWED',
        metadata: { user_id: userId },
      },
    );
    const { response } = { response: await client.changeRootKey(changeKeeping([phone], { version: 3n })) };
    expect(response.revokedDeviceIds).toEqual(['laptop', 'tablet']);
  });
});

describe('a change of the root key is refused and changes nothing', () => {
  type Spoil = (request: ReturnType<typeof changeKeeping>, keys: { rootKey: KeyPair }) => void;
  const change = (request: ReturnType<typeof changeKeeping>) => request.rootKeyChange as RootKeyChange;
  const cases: Record<string, { spoil: Spoil; reason: string; metadata: Record<string, string> }> = {
    'for another version of the list': {
      spoil: (r, { rootKey }) => {
        r.rootKeyChange = rootKeyChangeOf(userOf(r), { from: rootKey, to: held(r), version: 2n });
      },
      reason: 'DEVICE_LIST_CONFLICT',
      metadata: { current_version: '3' },
    },
    'from a root key that the user does not have': {
      spoil: (r) => {
        r.rootKeyChange = rootKeyChangeOf(userOf(r), { from: newRootKey(), to: held(r), version: 3n });
      },
      reason: 'ROOT_KEY_MISMATCH',
      metadata: {},
    },
    'to the root key that the user has': {
      spoil: (r, { rootKey }) => {
        r.rootKeyChange = rootKeyChangeOf(userOf(r), { from: rootKey, to: rootKey, version: 3n });
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'root_key_change.new_root_key', rule: 'used-before' },
    },
    'to a key of low order': {
      spoil: (r) => {
        change(r).newRootKey = new Uint8Array([1, ...new Uint8Array(31)]);
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'root_key_change.new_root_key', rule: 'low-order' },
    },
    'to a key that is not canonical': {
      spoil: (r) => {
        change(r).newRootKey = new Uint8Array(32).fill(0xff);
      },
      reason: 'KEY_INVALID',
      metadata: { field: 'root_key_change.new_root_key', rule: 'not-canonical' },
    },
    'that the new root key did not sign': {
      spoil: (r) => {
        change(r).newSignature = new Uint8Array(64);
      },
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'root_key_change.new_signature' },
    },
    'that another key than the previous one signed': {
      spoil: (r) => {
        change(r).previousSignature = change(r).newSignature;
      },
      reason: 'SIGNATURE_INVALID',
      metadata: { field: 'root_key_change.previous_signature' },
    },
    'with a certificate by the old root key': {
      spoil: (r, { rootKey }) => {
        const certificate = r.certifiedDevices[1]?.certificate;
        if (certificate) certificate.rootKey = rootKey.publicKey;
      },
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'certified_devices[1].certificate.root_key', rule: 'root-key' },
    },
    'with the certificate of another device': {
      spoil: (r) => {
        const [phone, laptop] = r.certifiedDevices;
        if (phone?.certificate && laptop) laptop.certificate = phone.certificate;
      },
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'certified_devices[1].certificate.signature', rule: 'signature' },
    },
    'with a certificate of a time finer than it signs': {
      spoil: (r) => {
        const certificate = r.certifiedDevices[1]?.certificate;
        if (certificate) certificate.certifiedAt = { ...timestampFromMs(1_000), nanos: 1 };
      },
      reason: 'CERTIFICATE_INVALID',
      metadata: { field: 'certified_devices[1].certificate.certified_at', rule: 'time' },
    },
    'with a device that the user does not have': {
      spoil: (r) => {
        if (r.certifiedDevices[1]) r.certifiedDevices[1].deviceId = 'watch';
      },
      reason: 'INVALID_FIELD',
      metadata: { field: 'certified_devices[1].device_id' },
    },
    'with a device twice': {
      spoil: (r) => {
        if (r.certifiedDevices[1]) r.certifiedDevices[1].deviceId = 'phone';
      },
      reason: 'INVALID_FIELD',
      metadata: { field: 'certified_devices[1].device_id' },
    },
    'without the calling device': {
      spoil: (r) => {
        r.certifiedDevices = r.certifiedDevices.slice(1);
      },
      reason: 'INVALID_FIELD',
      metadata: { field: 'certified_devices' },
    },
  };
  let userId = '';
  let to: KeyPair;
  const userOf = (_: unknown) => userId;
  const held = (_: unknown) => to;

  test.for(Object.entries(cases))('%s', async ([, { spoil, reason, metadata }]) => {
    const user = await threeDevices();
    userId = user.userId;
    to = newRootKey();
    const request = clone(ChangeRootKeyRequestSchema, changeKeeping([user.phone, user.laptop], { version: 3n, to }));
    spoil(request, user);
    expect(await refusalOf(user.client.changeRootKey(request))).toMatchObject({ reason, metadata });
    expect((await verifiedLog(service, userId)).state.version).toBe(3n);
  });

  test('with a device that was revoked, and by a device that was', async () => {
    const { userId: revokedUser, phone, laptop, client } = await threeDevices();
    await service.revoke(revokedUser, 'laptop');
    expect(await refusalOf(client.changeRootKey(changeKeeping([phone, laptop], { version: 4n })))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'certified_devices[1].device_id' },
    });
    const gone = await service.asDevice(laptop);
    expect(await refusalOf(gone.changeRootKey(changeKeeping([laptop], { version: 4n })))).toMatchObject({
      reason: 'DEVICE_REVOKED',
    });
    expect((await verifiedLog(service, revokedUser)).state.version).toBe(4n);
  });

  test('back to a root key that the user had before', async () => {
    const { userId: of, phone, rootKey, client } = await threeDevices();
    const second = newRootKey();
    await client.changeRootKey(changeKeeping([phone], { version: 3n, to: second }));
    const back = changeKeeping([phone], { version: 7n, from: second, to: rootKey });
    expect(await refusalOf(client.changeRootKey(back))).toMatchObject({
      reason: 'KEY_INVALID',
      metadata: { rule: 'used-before' },
    });
    expect((await verifiedLog(service, of)).state.version).toBe(7n);
  });

  test('by a device that is not registered', async () => {
    const { userId: of, phone } = await threeDevices();
    const stray = { ...phone, deviceId: 'stray' };
    expect(
      await refusalOf((await service.asDevice(stray)).changeRootKey(changeKeeping([stray], { version: 3n }))),
    ).toMatchObject({ reason: 'DEVICE_NOT_REGISTERED' });
    expect((await verifiedLog(service, of)).state.version).toBe(3n);
  });
});

describe('a user who lost every device', () => {
  /** A new device that begins anew under a root key of its own. */
  function anew(userId: string, from: KeyPair, { version, signed = false }: { version: bigint; signed?: boolean }) {
    const to = newRootKey();
    const { device, registration } = makeDevice({ userId, deviceId: 'new-phone', rootKey: to });
    const rootKeyChange = rootKeyChangeOf(userId, { from, to, version, signed });
    return { device, registration: create(RegisterDeviceRequestSchema, { ...registration, rootKeyChange }) };
  }

  test.for([false, true])('begins anew with a new device: all others are revoked (signed: %s)', async (signed) => {
    const { userId, rootKey } = await threeDevices();
    const { device, registration } = anew(userId, rootKey, { version: 3n, signed });
    const client = await service.asDevice(device);
    const events = await eventsAbout(userId, service.natsUrl, 3n);
    const response = await client.registerDevice(registration);
    expect(response.deviceListVersion).toBe(8n);
    expect(await client.registerDevice({ ...registration, requestId: randomUUID() })).toEqual(response);
    const { entries, state } = await verifiedLog(service, userId);
    expect(entries.slice(3).map(({ kind, deviceId }) => [kind, deviceId])).toEqual([
      [DeviceLogKind.ROOT_KEY_CHANGED, ''],
      [DeviceLogKind.DEVICE_REVOKED, 'phone'],
      [DeviceLogKind.DEVICE_REVOKED, 'laptop'],
      [DeviceLogKind.DEVICE_REVOKED, 'tablet'],
      [DeviceLogKind.DEVICE_ADDED, 'new-phone'],
    ]);
    expect(Buffer.from(state.head)).toEqual(Buffer.from(response.logHead));
    const told = await events.next(5);
    await events.close();
    expect(told).toMatchObject([
      { version: 4n, signedByPrevious: signed },
      { version: 5n, deviceId: 'phone', revoked: true },
      { version: 6n, deviceId: 'laptop', revoked: true },
      { version: 7n, deviceId: 'tablet', revoked: true },
      { version: 8n, deviceId: 'new-phone', revoked: false },
    ]);
  });

  test('does not for another version, another root key in the certificate, or where a reset is not allowed', async () => {
    const { userId, rootKey } = await threeDevices();
    const late = anew(userId, rootKey, { version: 2n });
    expect(await refusalOf((await service.asDevice(late.device)).registerDevice(late.registration))).toMatchObject({
      reason: 'DEVICE_LIST_CONFLICT',
      metadata: { current_version: '3' },
    });
    const unfit = anew(userId, rootKey, { version: 3n });
    unfit.registration.rootKeyChange = rootKeyChangeOf(userId, { from: rootKey, to: newRootKey(), version: 3n });
    expect(await refusalOf((await service.asDevice(unfit.device)).registerDevice(unfit.registration))).toMatchObject({
      reason: 'INVALID_FIELD',
      metadata: { field: 'root_key_change.new_root_key' },
    });
    expect((await verifiedLog(service, userId)).state.version).toBe(3n);

    const wary = await threeDevices(strict);
    const reset = anew(wary.userId, wary.rootKey, { version: 3n });
    expect(await refusalOf((await strict.asDevice(reset.device)).registerDevice(reset.registration))).toMatchObject({
      reason: 'ROOT_KEY_RESET_NOT_ALLOWED',
    });
    const signed = anew(wary.userId, wary.rootKey, { version: 3n, signed: true });
    await (await strict.asDevice(signed.device)).registerDevice(signed.registration);
    expect((await verifiedLog(strict, wary.userId)).state.version).toBe(8n);
  });

  test('is not made by a first registration with a change: nothing of it is stored', async () => {
    const userId = newUser();
    const { device, registration } = anew(userId, newRootKey(), { version: 1n });
    expect(await refusalOf((await service.asDevice(device)).registerDevice(registration))).toMatchObject({
      reason: 'DEVICE_LIST_CONFLICT',
      metadata: { current_version: '0' },
    });
    const { rows } = await service.db.pool.query('SELECT FROM users WHERE user_id = $1', [userId]);
    expect(rows).toEqual([]);
  });
});
