import { create } from '@bufbuild/protobuf';
import {
  type CertifiedDevice,
  type ChangeRootKeyRequest,
  type ChangeRootKeyResponse,
  ChangeRootKeyResponseSchema,
  type DeviceCertificate,
  IdentityKeysService,
  type RootKeyChange,
} from '@keytrail/contracts';
import { CertificateError, deviceCertificateStatement, type Ref } from '@keytrail/crypto';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Database, Transaction } from '@keytrail/storage';
import { keepTrace, pseudonym } from '@keytrail/telemetry';
import type { UploadedSignature } from '../domain/key-set.ts';
import { makeChange, type RootKeyReset, refuseInvalidChange, revokeLeftOut } from '../root-key-changes.ts';
import { lockUser } from '../store/devices.ts';
import { lockDevice } from '../store/prekeys.ts';
import { devicesOfUser, type StoredDevice, type Writer } from '../store/revocations.ts';
import { recertifyDevice } from '../store/root-keys.ts';
import { refuseInvalidSignatures } from '../verify-keys.ts';
import { writerOf } from '../writer.ts';
import { callerKey } from './caller-key.ts';
import { registeredDevice } from './registered-device.ts';

export interface ChangeRootKeyParts {
  readonly db: Database;
  readonly rootKeyReset: RootKeyReset;
  readonly writerBuild: string;
}

/** A device that stays, with its stored keys and its new certificate. */
interface StayingDevice {
  readonly field: string;
  readonly device: StoredDevice;
  readonly certificate: DeviceCertificate;
}

/** Gives the user another root key; devices without a new certificate are revoked. Idempotent by request_id. */
export function changeRootKey({ db, rootKeyReset, writerBuild }: ChangeRootKeyParts): Rpc {
  return unary(IdentityKeysService.method.changeRootKey, {
    allow: ['device'],
    async handle(request, call) {
      const device = deviceCaller(call);
      const change = request.rootKeyChange;
      if (!change) throw new Error('the request was not validated');
      refuseIncompleteDevices(device, request);
      await refuseInvalidChange(device.userId, change, rootKeyReset);
      keepTrace('root key changed');
      const { response, repeated } = await answerOnce(
        db,
        askedRequest(IdentityKeysService.method.changeRootKey, request, callerKey(call)),
        (tx) => makeChangeOfDevice(tx, device, change, request.certifiedDevices, writerOf({ writerBuild })),
      );
      call.log.info(
        {
          user: pseudonym(device.userId),
          device: pseudonym(device.deviceId),
          version: String(response.deviceListVersion),
          revoked: response.revokedDeviceIds.length,
          signed_by_previous: change.previousSignature.length > 0,
          repeated,
        },
        'root key changed',
      );
      return response;
    },
  });
}

/** Throws INVALID_FIELD when a device stands twice, or the calling one does not. */
function refuseIncompleteDevices({ deviceId }: Ref, { certifiedDevices }: ChangeRootKeyRequest): void {
  const seen = new Set<string>();
  const repeated = certifiedDevices.findIndex((device) => seen.size === seen.add(device.deviceId).size);
  if (repeated >= 0) throw invalidField(`certified_devices[${repeated}].device_id`, 'the device stands twice');
  if (!seen.has(deviceId)) throw invalidField('certified_devices', 'the calling device must be among them');
}

async function makeChangeOfDevice(
  tx: Transaction,
  caller: Ref,
  change: RootKeyChange,
  certified: readonly CertifiedDevice[],
  writer: Writer,
): Promise<ChangeRootKeyResponse> {
  const { userId } = caller;
  const user = await lockUser(tx, userId);
  const devices = user ? await devicesOfUser(tx, userId) : [];
  registeredDevice(caller, devices);
  if (!user) throw new Error('a device without a user');
  const good = devices.filter(({ revoked_at }) => !revoked_at);
  for (const { device_number } of good) await lockDevice(tx, device_number);

  const changed = await makeChange(tx, userId, user, change);
  const staying = stayingDevices(good, certified);
  await refuseInvalidSignatures(staying.map((device) => certificateSignature(userId, device, change.newRootKey)));
  let newest = changed;
  for (const { device, certificate } of staying) newest = await recertifyDevice(tx, userId, device, certificate);
  const leftOut = good.filter((device) => staying.every((other) => other.device !== device));
  newest = (await revokeLeftOut(tx, caller, leftOut, change.newRootKey, writer)) ?? newest;
  return create(ChangeRootKeyResponseSchema, {
    deviceListVersion: newest.version,
    logHead: newest.entry_hash,
    revokedDeviceIds: leftOut.map(({ device_id }) => device_id),
  });
}

/** Throws INVALID_FIELD for a device that the user does not have, or that has been revoked. */
function stayingDevices(good: readonly StoredDevice[], certified: readonly CertifiedDevice[]): StayingDevice[] {
  return certified.map(({ deviceId, certificate }, i) => {
    const field = `certified_devices[${i}]`;
    const device = good.find(({ device_id }) => device_id === deviceId);
    if (!device) throw invalidField(`${field}.device_id`, 'the user has no such device, or it has been revoked');
    if (!certificate) throw new Error('the request was not validated');
    return { field, device, certificate };
  });
}

/** Throws CERTIFICATE_INVALID when the certificate is by another root key than the new one, or not well formed. */
function certificateSignature(
  userId: string,
  { field, device, certificate }: StayingDevice,
  rootKey: Uint8Array,
): UploadedSignature {
  if (Buffer.compare(certificate.rootKey, rootKey) !== 0)
    throw refuseCertificate(`${field}.certificate.root_key`, 'root-key', 'must be the new root key');
  const keys = { userId, deviceId: device.device_id, identityKey: device.identity_key, signingKey: device.signing_key };
  try {
    return { field: `${field}.certificate.signature`, statement: deviceCertificateStatement(keys, certificate) };
  } catch (error) {
    if (!(error instanceof CertificateError)) throw error;
    const at = error.problem === 'time' ? `${field}.certificate.certified_at` : `${field}.certificate`;
    throw refuseCertificate(at, error.problem, 'must be whole milliseconds, not before 1970');
  }
}

function refuseCertificate(field: string, rule: string, description: string) {
  return refuse('CERTIFICATE_INVALID', `${field}: ${rule}`, {
    metadata: { field, rule },
    fields: [{ field, description }],
  });
}
