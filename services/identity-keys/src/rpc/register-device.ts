import { create } from '@bufbuild/protobuf';
import {
  DeviceLogKind,
  IdentityKeysService,
  type RegisterDeviceRequest,
  type RegisterDeviceResponse,
  RegisterDeviceResponseSchema,
  type RootKeyChange,
} from '@keytrail/contracts';
import { CertificateError, certifiedAtMs, type Ref } from '@keytrail/crypto';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database, Transaction } from '@keytrail/storage';
import { currentTraceId, keepTrace, pseudonym } from '@keytrail/telemetry';
import {
  digestKeys,
  keysOfDevice,
  repeatedKeyId,
  signaturesOfDevice,
  type UploadedSignature,
  wholeKeySet,
} from '../domain/key-set.ts';
import { beginAnew, type RootKeyReset, refuseInvalidChange } from '../root-key-changes.ts';
import { appendEntry } from '../store/device-log.ts';
import {
  countDevices,
  findRegistered,
  insertDeviceRow,
  lockOrNameUser,
  type RegisteredDevice,
} from '../store/devices.ts';
import { addKemPrekeys, addOneTimePrekeys } from '../store/prekeys.ts';
import { refuseInvalidKeys, refuseInvalidSignatures } from '../verify-keys.ts';
import { writerOf } from '../writer.ts';
import { callerKey } from './caller-key.ts';
import { announceDevice } from './device-list-events.ts';
import { refuseErased } from './refuse-erased.ts';
import { refuseOtherRootKey } from './refuse-other-root-key.ts';
import { refuseOverfull } from './refuse-overfull.ts';
import { refuseRevoked } from './refuse-revoked.ts';

export interface RegisterDeviceParts {
  readonly db: Database;
  readonly writerBuild: string;
  readonly maxDevicesPerUser: number;
  readonly maxDevicesEverPerUser: number;
  readonly maxPrekeysPerPool: number;
  readonly rootKeyReset: RootKeyReset;
}

/**
 * Adds the calling device with its whole key set, verified, or nothing. Idempotent by request_id, and by content: the same device with
 * the same keys gets the first answer again.
 */
export function registerDevice({ db, rootKeyReset, maxPrekeysPerPool, ...rest }: RegisterDeviceParts): Rpc {
  return unary(IdentityKeysService.method.registerDevice, {
    allow: ['device'],
    async handle(request, call) {
      const device = deviceCaller(call);
      const repeated = repeatedKeyId(request, wholeKeySet(request).lastResortPrekey.keyId);
      if (repeated) throw invalidField(repeated, 'the key id stands twice in this upload');
      for (const [pool, { length }] of pools(request))
        refuseOverfull(pool, { unclaimed: length, added: length }, maxPrekeysPerPool);
      const signatures = signaturesToVerify(device, request);
      await refuseInvalidKeys(keysOfDevice(request));
      await refuseInvalidSignatures(signatures);
      if (request.rootKeyChange) await refuseUnfitChange(device, request, request.rootKeyChange, rootKeyReset);
      keepTrace('device registered');

      const outcome = await answerOnce(
        db,
        askedRequest(IdentityKeysService.method.registerDevice, request, callerKey(call)),
        (tx) => addDevice(tx, device, request, rest),
      );
      call.log.info(
        {
          user: pseudonym(device.userId),
          device: pseudonym(device.deviceId),
          version: String(outcome.response.deviceListVersion),
          repeated: outcome.repeated,
        },
        'device registered',
      );
      return outcome.response;
    },
  });
}

function pools({ oneTimePrekeys, oneTimeKemPrekeys }: RegisterDeviceRequest) {
  return [
    ['one_time_prekeys', oneTimePrekeys],
    ['one_time_kem_prekeys', oneTimeKemPrekeys],
  ] as const;
}

function signaturesToVerify(device: Ref, request: RegisterDeviceRequest): UploadedSignature[] {
  try {
    return signaturesOfDevice(device, request);
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    const field = error.problem === 'time' ? 'certificate.certified_at' : 'certificate';
    throw refuse('CERTIFICATE_INVALID', `${field}: ${error.problem}`, {
      metadata: { field, rule: error.problem },
      fields: [{ field, description: 'must be whole milliseconds, not before 1970' }],
    });
  }
}

/** The device is the first under the new root key: that is the one which certifies it. */
async function refuseUnfitChange(
  { userId }: Ref,
  request: RegisterDeviceRequest,
  change: RootKeyChange,
  reset: RootKeyReset,
): Promise<void> {
  if (Buffer.compare(change.newRootKey, wholeKeySet(request).certificate.rootKey) !== 0)
    throw invalidField('root_key_change.new_root_key', 'must be the root key of the certificate');
  await refuseInvalidChange(userId, change, reset);
}

async function addDevice(
  tx: Transaction,
  device: Ref,
  request: RegisterDeviceRequest,
  { writerBuild, ...limits }: Pick<RegisterDeviceParts, 'writerBuild' | 'maxDevicesPerUser' | 'maxDevicesEverPerUser'>,
): Promise<RegisterDeviceResponse> {
  const { certificate } = wholeKeySet(request);
  const keysDigest = digestKeys(request);
  const user = await lockOrNameUser(tx, device.userId, certificate.rootKey);
  refuseErased(device.userId, user.erased_at);
  const known = await findRegistered(tx, device);
  if (known) return firstAnswer(device, request, known, keysDigest);
  if (request.rootKeyChange) await beginAnew(tx, device, user, request.rootKeyChange, writerOf({ writerBuild }));
  else refuseOtherRootKey(device.userId, user.root_key, certificate.rootKey);
  await refuseTooManyDevices(tx, device.userId, limits);

  const { identityKey, signingKey } = request;
  const entry = await appendEntry(tx, device.userId, {
    kind: DeviceLogKind.DEVICE_ADDED,
    rootKey: certificate.rootKey,
    device: { ...device, identityKey, signingKey },
    certificate,
  });
  const deviceNumber = await insertDeviceRow(tx, device, request, entry, {
    keysDigest,
    certifiedAtMs: certifiedAtMs(certificate) ?? 0n,
    writerBuild,
    traceId: currentTraceId(),
  });
  await addOneTimePrekeys(tx, deviceNumber, request.oneTimePrekeys);
  await addKemPrekeys(tx, deviceNumber, request.oneTimeKemPrekeys);
  await announceDevice(tx, device, entry, { revoked: false });
  return answer(entry.version, entry.entry_hash, request);
}

async function refuseTooManyDevices(
  tx: Transaction,
  userId: string,
  {
    maxDevicesPerUser,
    maxDevicesEverPerUser,
  }: Pick<RegisterDeviceParts, 'maxDevicesPerUser' | 'maxDevicesEverPerUser'>,
): Promise<void> {
  const { active, ever } = await countDevices(tx, userId);
  if (ever >= maxDevicesEverPerUser)
    throw refuse('DEVICE_LIMIT_REACHED', `the user has had ${maxDevicesEverPerUser} devices, revoked ones counted`, {
      metadata: { limit: String(maxDevicesEverPerUser), scope: 'ever' },
    });
  if (active >= maxDevicesPerUser)
    throw refuse('DEVICE_LIMIT_REACHED', `the user has ${maxDevicesPerUser} devices`, {
      metadata: { limit: String(maxDevicesPerUser), scope: 'active' },
    });
}

function firstAnswer(
  device: Ref,
  request: RegisterDeviceRequest,
  known: RegisteredDevice,
  keysDigest: Uint8Array,
): RegisterDeviceResponse {
  refuseRevoked(device, known.revoked_at);
  if (Buffer.compare(known.registered_keys_digest, keysDigest) !== 0)
    throw refuse('DEVICE_ALREADY_REGISTERED', 'the device id is registered with other keys', {
      metadata: { device_id: device.deviceId },
    });
  return answer(known.added_in_version, known.entry_hash, request);
}

function answer(
  version: bigint,
  logHead: Uint8Array,
  { oneTimePrekeys, oneTimeKemPrekeys }: RegisterDeviceRequest,
): RegisterDeviceResponse {
  return create(RegisterDeviceResponseSchema, {
    deviceListVersion: version,
    counts: { oneTime: oneTimePrekeys.length, kem: oneTimeKemPrekeys.length },
    logHead,
  });
}
