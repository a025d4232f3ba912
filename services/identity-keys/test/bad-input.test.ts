import { randomUUID } from 'node:crypto';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { TimestampSchema } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import {
  ChangeRootKeyRequestSchema,
  ClaimPrekeyBundlesRequestSchema,
  GetDevicesRequestSchema,
  ListDeviceLogRequestSchema,
  RegisterDeviceRequestSchema,
  ReplenishPrekeysRequestSchema,
  type RevokeDeviceRequest,
  type RevokeDeviceRequestSchema,
  SetRecoveryRequestSchema,
} from '@keytrail/contracts';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { wholeKeySet } from '../src/domain/key-set.ts';
import { makeDevice, makeKemPrekeys, makeOneTimePrekeys } from './device-keys.ts';
import {
  type IdentityKeysClient,
  type IdentityKeysUnderTest,
  newUser,
  startIdentityKeys,
  wires,
} from './identity-keys-fixture.ts';
import { refusalOf } from './refusal-of.ts';
import { revocationOf } from './revoking.ts';
import { changeKeeping } from './root-key-changing.ts';

let service: IdentityKeysUnderTest;
const { device, registration } = makeDevice({ userId: newUser(), deviceId: 'phone', oneTime: 1, kem: 1 });
beforeAll(async () => {
  service = await startIdentityKeys();
});
afterAll(() => service?.stop());

const short = new Uint8Array(31);
const long = new Uint8Array(2000);
type Case = [string, (client: IdentityKeysClient) => Promise<unknown>];

const { $typeName, $unknown, ...whole } = registration;
const { certificate, signedPrekey, lastResortPrekey } = wholeKeySet(registration);
const register =
  (changes: MessageInitShape<typeof RegisterDeviceRequestSchema>): Case[1] =>
  (client) =>
    client.registerDevice(create(RegisterDeviceRequestSchema, { ...whole, ...changes }));
const replenish =
  (request: MessageInitShape<typeof ReplenishPrekeysRequestSchema>): Case[1] =>
  (client) =>
    client.replenishPrekeys(create(ReplenishPrekeysRequestSchema, { requestId: randomUUID(), ...request }));
const claim =
  (devices: { userId: string; deviceId: string }[], claimId: string = randomUUID()): Case[1] =>
  (client) =>
    client.claimPrekeyBundles(create(ClaimPrekeyBundlesRequestSchema, { claimId, devices }));
const getDevices =
  (userIds: string[]): Case[1] =>
  (client) =>
    client.getDevices(create(GetDevicesRequestSchema, { userIds }));

const logOf =
  (users: { userId: string; afterVersion?: bigint }[]): Case[1] =>
  (client) =>
    client.listDeviceLog(create(ListDeviceLogRequestSchema, { users }));
const revoke =
  (changes: Exclude<MessageInitShape<typeof RevokeDeviceRequestSchema>, RevokeDeviceRequest>): Case[1] =>
  (client) => {
    const { requestId, revokedAt, signature } = revocationOf(device);
    const target = { userId: device.userId, deviceId: device.deviceId };
    return client.revokeDevice({ requestId, device: target, revokedAt, signature, ...changes });
  };
const { rootKeyChange: keyChange, certifiedDevices } = changeKeeping([device], { version: 1n });
const [certified] = certifiedDevices;
if (!keyChange || !certified) throw new Error('no change');
const changeKey =
  (changes: MessageInitShape<typeof ChangeRootKeyRequestSchema>): Case[1] =>
  (client) =>
    client.changeRootKey(
      create(ChangeRootKeyRequestSchema, {
        requestId: randomUUID(),
        rootKeyChange: keyChange,
        certifiedDevices,
        ...changes,
      }),
    );
const setRecovery =
  (changes: MessageInitShape<typeof SetRecoveryRequestSchema>): Case[1] =>
  (client) =>
    client.setRecovery(
      create(SetRecoveryRequestSchema, {
        requestId: randomUUID(),
        rootKey: device.rootKey.publicKey,
        sealedRootKey: new Uint8Array(76),
        ...changes,
      }),
    );

const oneTime = makeOneTimePrekeys(1, 101);
const [kem] = makeKemPrekeys(device, 2, 1);
if (!kem) throw new Error('no prekey');
const one = oneTime.slice(0, 1)[0] as (typeof oneTime)[0];

const cases: Case[] = [
  ['request_id', register({ requestId: 'no uuid' })],
  ['identity_key', register({ identityKey: short })],
  ['identity_key', register({ identityKey: long })],
  ['signing_key', register({ signingKey: short })],
  ['certificate.root_key', register({ certificate: { ...certificate, rootKey: short } })],
  ['certificate.suite', register({ certificate: { ...certificate, suite: 2 } })],
  ['certificate.certified_at', register({ certificate: { ...certificate, certifiedAt: undefined } })],
  ...[-(2n ** 62n), -1n, 253_370_764_800n, 253_402_300_800n, 2n ** 62n].map(
    (seconds): Case => [
      'certificate.certified_at',
      register({ certificate: { ...certificate, certifiedAt: create(TimestampSchema, { seconds }) } }),
    ],
  ),
  ['certificate.signature', register({ certificate: { ...certificate, signature: long } })],
  ['signed_prekey.key_id', register({ signedPrekey: { ...signedPrekey, keyId: 0 } })],
  ['signed_prekey.public_key', register({ signedPrekey: { ...signedPrekey, publicKey: short } })],
  ['signed_prekey.signature', register({ signedPrekey: { ...signedPrekey, signature: short } })],
  ['last_resort_prekey.key_id', register({ lastResortPrekey: { ...lastResortPrekey, keyId: 0 } })],
  ['last_resort_prekey.public_key', register({ lastResortPrekey: { ...lastResortPrekey, publicKey: long } })],
  ['last_resort_prekey.signature', register({ lastResortPrekey: { ...lastResortPrekey, signature: long } })],
  ['one_time_prekeys', register({ oneTimePrekeys: oneTime })],
  ['one_time_prekeys[0].key_id', register({ oneTimePrekeys: [{ ...one, keyId: 0 }] })],
  ['one_time_prekeys[0].public_key', register({ oneTimePrekeys: [{ ...one, publicKey: short }] })],
  ['one_time_kem_prekeys[0].public_key', register({ oneTimeKemPrekeys: [{ ...kem, publicKey: short }] })],
  ['one_time_kem_prekeys[0].signature', register({ oneTimeKemPrekeys: [{ ...kem, signature: short }] })],
  ['request_id', replenish({ requestId: '' })],
  ['one_time_prekeys', replenish({ oneTimePrekeys: oneTime })],
  ['one_time_prekeys[0].key_id', replenish({ oneTimePrekeys: [{ ...one, keyId: 0 }] })],
  ['one_time_prekeys[0].public_key', replenish({ oneTimePrekeys: [{ ...one, publicKey: new Uint8Array() }] })],
  ['one_time_prekeys[1].key_id', replenish({ oneTimePrekeys: [one, one] })],
  [
    'one_time_kem_prekeys',
    replenish({ oneTimeKemPrekeys: Array.from({ length: 101 }, (_, i) => ({ ...kem, keyId: i + 1 })) }),
  ],
  ['one_time_kem_prekeys[0].key_id', replenish({ oneTimeKemPrekeys: [{ ...kem, keyId: 0 }] })],
  ['one_time_kem_prekeys[0].public_key', replenish({ oneTimeKemPrekeys: [{ ...kem, publicKey: short }] })],
  ['one_time_kem_prekeys[0].signature', replenish({ oneTimeKemPrekeys: [{ ...kem, signature: new Uint8Array() }] })],
  ['claim_id', claim([device], 'no uuid')],
  ['devices', claim([])],
  ['devices', claim(Array.from({ length: 1501 }, (_, i) => ({ userId: 'u', deviceId: String(i) })))],
  ['devices[1].user_id', claim([device, { userId: 'a/b', deviceId: 'phone' }])],
  ['devices[0].user_id', claim([{ userId: 'u'.repeat(129), deviceId: 'phone' }])],
  ['devices[0].device_id', claim([{ userId: 'u', deviceId: '' }])],
  ['devices[0].device_id', claim([{ userId: 'u', deviceId: 'd'.repeat(65) }])],
  ['devices[1]', claim([device, device])],
  ['user_ids', getDevices([])],
  ['user_ids', getDevices(Array.from({ length: 1001 }, (_, i) => `u${i}`))],
  ['user_ids', getDevices(['u', 'u'])],
  ['user_ids[1]', getDevices(['u', "'; DROP TABLE users; --"])],
  ['users', logOf([])],
  ['users', logOf(Array.from({ length: 201 }, (_, i) => ({ userId: `u${i}` })))],
  ['users[1].user_id', logOf([{ userId: 'u' }, { userId: 'a/b' }])],
  ['users[1].user_id', logOf([{ userId: 'u' }, { userId: 'u', afterVersion: 3n }])],
  ['users[0].after_version', logOf([{ userId: 'u', afterVersion: 2n ** 63n }])],
  ['request_id', revoke({ requestId: '' })],
  ['device', revoke({ device: undefined })],
  ['device.device_id', revoke({ device: { ...device, deviceId: 'a/b' } })],
  ['signature', revoke({ signature: short })],
  ['signature', revoke({ signature: new Uint8Array() })],
  ['revoked_at', revoke({ revokedAt: undefined })],
  ['revoked_at', revoke({ revokedAt: { seconds: 2n ** 62n } })],
  ['revoked_at', revoke({ revokedAt: { seconds: 1n, nanos: 1 } })],
  ['revoked_at', revoke({ revokedAt: { seconds: 1n } })],
  ['audit_note', revoke({ auditNote: 'for operators' })],
  ['audit_note', revoke({ auditNote: 'n'.repeat(501) })],
  ['request_id', changeKey({ requestId: 'no uuid' })],
  ['root_key_change', changeKey({ rootKeyChange: undefined })],
  ['root_key_change.previous_root_key', changeKey({ rootKeyChange: { ...keyChange, previousRootKey: short } })],
  ['root_key_change.new_root_key', changeKey({ rootKeyChange: { ...keyChange, newRootKey: long } })],
  ['root_key_change.device_list_version', changeKey({ rootKeyChange: { ...keyChange, deviceListVersion: 0n } })],
  ['root_key_change.device_list_version', changeKey({ rootKeyChange: { ...keyChange, deviceListVersion: 2n ** 63n } })],
  ['root_key_change.new_signature', changeKey({ rootKeyChange: { ...keyChange, newSignature: new Uint8Array() } })],
  ['root_key_change.previous_signature', changeKey({ rootKeyChange: { ...keyChange, previousSignature: short } })],
  ['certified_devices', changeKey({ certifiedDevices: [] })],
  ['certified_devices', changeKey({ certifiedDevices: Array.from({ length: 201 }, () => certified) })],
  ['certified_devices', changeKey({ certifiedDevices: [{ ...certified, deviceId: 'other' }] })],
  ['certified_devices[0].device_id', changeKey({ certifiedDevices: [{ ...certified, deviceId: '' }] })],
  ['certified_devices[0].certificate', changeKey({ certifiedDevices: [{ ...certified, certificate: undefined }] })],
  ['certified_devices[1].device_id', changeKey({ certifiedDevices: [certified, certified] })],
  ['root_key_change.new_root_key', register({ rootKeyChange: { ...keyChange, newRootKey: short } })],
  ['request_id', setRecovery({ requestId: '' })],
  ['root_key', setRecovery({ rootKey: short })],
  ['sealed_root_key', setRecovery({ sealedRootKey: short })],
  ['sealed_root_key', setRecovery({ sealedRootKey: long })],
];

describe.for(wires)('bad input over %s', (wire) => {
  test.for(cases.map(([field, call], i) => ({ field, call, i })))(
    'is INVALID_ARGUMENT naming $field (case $i)',
    async ({ field, call }) => {
      if (field.startsWith('one_time') || field === 'request_id' || field === 'revoked_at')
        await (await service.asDevice(device)).registerDevice(registration);
      const refusal = await refusalOf(call(await service.asDevice(device, { wire })));
      expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
      expect(refusal.fields.map((problem) => problem.field)).toContain(field);
      expect(refusal.traceId).toMatch(/^[0-9a-f]{32}$/);
    },
  );

  test.for([
    ['audit_note', {}],
    ['audit_note', { auditNote: ' ' }],
    ['signature', { auditNote: 'lost', signature: new Uint8Array(64) }],
    ['revoked_at', { auditNote: 'lost', revokedAt: create(TimestampSchema, { seconds: 1n }) }],
  ] as const)('of an operator’s revocation names %s', async ([field, changes]) => {
    const operator = await service.asOperator({ wire });
    const request = { requestId: randomUUID(), device: { userId: device.userId, deviceId: 'phone' }, ...changes };
    expect(await refusalOf(operator.revokeDevice(request))).toMatchObject({
      code: Code.InvalidArgument,
      reason: 'INVALID_FIELD',
      metadata: { field },
    });
  });

  test('from a service is refused where devices speak for themselves', async () => {
    const client = service.asService('session');
    expect(await refusalOf(client.registerDevice(registration))).toMatchObject({
      code: Code.PermissionDenied,
      reason: 'CALLER_NOT_ALLOWED',
    });
    expect(await refusalOf(client.replenishPrekeys({ requestId: randomUUID() }))).toMatchObject({
      reason: 'CALLER_NOT_ALLOWED',
    });
  });
});

test.for(wires)(
  'an operator’s note that the database would not take, or without a word, is INVALID_ARGUMENT (%s)',
  async (wire) => {
    const operator = await service.asOperator({ wire });
    const userId = newUser();
    for (const auditNote of ['a\0b', '\0', '', ' \n', 'n'.repeat(501)])
      for (const call of [
        operator.deleteUser({ requestId: randomUUID(), userId, auditNote }),
        operator.revokeDevice({ requestId: randomUUID(), device: { userId, deviceId: 'phone' }, auditNote }),
      ]) {
        const refusal = await refusalOf(call);
        expect(refusal).toMatchObject({ code: Code.InvalidArgument, reason: 'INVALID_FIELD' });
        expect([refusal.metadata.field, ...refusal.fields.map(({ field }) => field)]).toContain('audit_note');
      }
  },
);
