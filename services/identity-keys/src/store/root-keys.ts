import { type DeviceCertificate, DeviceLogKind, type RootKeyChange } from '@keytrail/contracts';
import { certifiedAtMs } from '@keytrail/crypto';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import { appendEntry, type RecordedEntry } from './device-log.ts';
import type { StoredDevice } from './revocations.ts';

const find = statement('root_key_find', 'SELECT 1 FROM root_keys WHERE user_id = $1 AND root_key = $2');
const add = statement('root_key_add', 'INSERT INTO root_keys (user_id, root_key, since_version) VALUES ($1, $2, $3)');
const certify = statement(
  'device_recertify',
  `UPDATE devices SET certified_in_version = $3, certificate_root_key = $4, certificate_signature = $5, certified_at = $6
 WHERE user_id = $1 AND device_number = $2`,
);

/** Whether the user has, or ever had, this root key. */
export async function hadRootKey(db: Queryable, userId: string, rootKey: Uint8Array): Promise<boolean> {
  return (await db.query(find, [userId, rootKey])).length > 0;
}

/**
 * Gives the user the new root key, of which the log tells. The user must be locked, at the version that the change names; by the end of the
 * transaction each device must be certified anew, or revoked.
 */
export async function replaceRootKey(tx: Transaction, userId: string, change: RootKeyChange): Promise<RecordedEntry> {
  await tx.query(add, [userId, change.newRootKey, change.deviceListVersion + 1n]);
  return appendEntry(tx, userId, { kind: DeviceLogKind.ROOT_KEY_CHANGED, rootKey: change.newRootKey, change });
}

/** Gives the device a certificate by the present root key. The user must be locked. */
export async function recertifyDevice(
  tx: Transaction,
  userId: string,
  { device_number, device_id: deviceId, identity_key, signing_key }: StoredDevice,
  certificate: DeviceCertificate,
): Promise<RecordedEntry> {
  const { rootKey, signature } = certificate;
  const device = { userId, deviceId, identityKey: identity_key, signingKey: signing_key };
  const entry = await appendEntry(tx, userId, {
    kind: DeviceLogKind.DEVICE_RECERTIFIED,
    rootKey,
    device,
    certificate,
  });
  const certifiedAt = new Date(Number(certifiedAtMs(certificate) ?? 0n)).toISOString();
  await tx.query(certify, [userId, device_number, entry.version, rootKey, signature, certifiedAt]);
  return entry;
}
