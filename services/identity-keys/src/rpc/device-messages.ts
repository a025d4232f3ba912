import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  type ClaimedUser,
  ClaimedUserSchema,
  type ClaimResult,
  ClaimResultSchema,
  type Device,
  type DeviceCertificate,
  DeviceCertificateSchema,
  DeviceSchema,
  NoBundleReason,
  PrekeyBundleSchema,
  PrekeyKind,
} from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import type { ClaimedUserRow } from '../store/claimed-users.ts';
import type { ClaimedRow } from '../store/claims.ts';
import type { DeviceListRow } from '../store/device-lists.ts';

interface CertificateColumns {
  readonly suite: number | null;
  readonly certificate_root_key: Buffer | null;
  readonly certificate_signature: Buffer | null;
  readonly certified_at: Date | null;
}

function certificateMessage(row: CertificateColumns): DeviceCertificate {
  return create(DeviceCertificateSchema, {
    rootKey: present(row.certificate_root_key),
    suite: present(row.suite),
    certifiedAt: timestampFromDate(present(row.certified_at)),
    signature: present(row.certificate_signature),
  });
}

/** `known`: the caller may know about the device's user. */
export function claimResultMessage({ userId, deviceId }: Ref, row: ClaimedRow, known: boolean): ClaimResult {
  const device = { userId, deviceId };
  if (row.signed_prekey_id === null && (!known || row.not_permitted))
    return create(ClaimResultSchema, { device, noBundleBecause: NoBundleReason.NOT_FOUND_OR_NOT_PERMITTED });
  if (row.device_number === null)
    return create(ClaimResultSchema, { device, noBundleBecause: NoBundleReason.DEVICE_UNKNOWN });
  if (row.signed_prekey_id === null)
    return create(ClaimResultSchema, { device, noBundleBecause: NoBundleReason.DEVICE_REVOKED });
  const bundle = create(PrekeyBundleSchema, {
    userId,
    deviceId,
    identityKey: present(row.identity_key),
    signingKey: present(row.signing_key),
    certificate: certificateMessage(row),
    signedPrekey: {
      keyId: Number(row.signed_prekey_id),
      publicKey: present(row.signed_prekey),
      signature: present(row.signed_prekey_signature),
    },
    kemPrekey: {
      keyId: Number(row.kem_prekey_id ?? row.last_resort_prekey_id),
      publicKey: present(row.kem_prekey),
      signature: present(row.kem_prekey_signature),
    },
    kemPrekeyKind: row.kem_prekey_id === null ? PrekeyKind.LAST_RESORT : PrekeyKind.ONE_TIME,
    ...(row.one_time_prekey_id !== null && {
      oneTimePrekey: { keyId: Number(row.one_time_prekey_id), publicKey: present(row.one_time_prekey) },
    }),
  });
  return create(ClaimResultSchema, { device, bundle });
}

export function claimedUserMessage(row: ClaimedUserRow): ClaimedUser {
  return create(ClaimedUserSchema, {
    userId: row.user_id,
    deviceListVersion: row.device_list_version,
    ...(row.root_key && { rootKey: row.root_key }),
    ...(row.log_head && { logHead: row.log_head }),
  });
}

export function deviceMessage(userId: string, row: DeviceListRow): Device {
  return create(DeviceSchema, {
    userId,
    deviceId: present(row.device_id),
    identityKey: row.identity_key,
    signingKey: row.signing_key,
    certificate: certificateMessage(row),
    signedPrekey: {
      keyId: Number(row.signed_prekey_id),
      publicKey: row.signed_prekey,
      signature: row.signed_prekey_signature,
    },
    lastResortPrekey: {
      keyId: Number(row.last_resort_prekey_id),
      publicKey: row.last_resort_prekey,
      signature: row.last_resort_prekey_signature,
    },
    addedInVersion: row.added_in_version,
    addedAt: timestampFromDate(row.added_at),
    ...(row.revoked_at && { revokedAt: timestampFromDate(row.revoked_at) }),
  });
}

/** The database keeps whole devices only: a column that is missing here is a fault, never an answer. */
function present<T>(value: T | null): T {
  if (value === null) throw new Error('a device without its whole key set');
  return value;
}
