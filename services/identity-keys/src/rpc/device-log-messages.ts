import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type DeviceLogEntry, DeviceLogEntrySchema } from '@keytrail/contracts';
import { suite } from '@keytrail/crypto';
import type { DeviceLogRow } from '../store/device-log.ts';

type EntryInit = Exclude<MessageInitShape<typeof DeviceLogEntrySchema>, DeviceLogEntry>;

/** A row of the log as it is told; undefined for a row that only tells where the log stands. */
export function deviceLogEntryMessage(row: DeviceLogRow): DeviceLogEntry | undefined {
  if (row.version === null) return undefined;
  return create(DeviceLogEntrySchema, {
    version: row.version,
    kind: row.kind,
    previousHash: row.previous_hash,
    recordedAt: timestampFromDate(row.recorded_at),
    rootKey: row.root_key,
    ...ofDevice(row),
    ...certificate(row),
    ...revocation(row),
    ...rootKeyChange(row),
    hash: row.entry_hash,
  });
}

function ofDevice({ device_id, identity_key, signing_key }: DeviceLogRow): EntryInit {
  if (device_id === null || identity_key === null || signing_key === null) return {};
  return { deviceId: device_id, identityKey: identity_key, signingKey: signing_key };
}

function certificate({ root_key, certified_at, certificate_signature }: DeviceLogRow): EntryInit {
  if (certified_at === null || certificate_signature === null) return {};
  const certifiedAt = timestampFromDate(certified_at);
  return { certificate: { rootKey: root_key, suite, certifiedAt, signature: certificate_signature } };
}

function revocation(row: DeviceLogRow): EntryInit {
  if (row.revoked_by === null) return {};
  return {
    revocation: {
      by: row.revoked_by,
      revokingDeviceId: row.revoking_device_id ?? '',
      ...(row.revocation_signed_at !== null && { signedAt: timestampFromDate(row.revocation_signed_at) }),
      ...(row.revocation_signature !== null && { signature: row.revocation_signature }),
    },
  };
}

function rootKeyChange(row: DeviceLogRow): EntryInit {
  const { version, previous_root_key, previous_signature, new_signature } = row;
  if (version === null || previous_root_key === null || previous_signature === null || new_signature === null)
    return {};
  return {
    rootKeyChange: {
      previousRootKey: previous_root_key,
      newRootKey: row.root_key,
      deviceListVersion: version - 1n,
      previousSignature: previous_signature,
      newSignature: new_signature,
    },
  };
}
