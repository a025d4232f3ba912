import type { RegisterDeviceRequest } from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import { wholeKeySet } from '../domain/key-set.ts';

/** A device that is there already. */
export interface RegisteredDevice {
  readonly device_number: bigint;
  readonly registered_keys_digest: Buffer;
  readonly added_in_version: bigint;
  readonly revoked_at: Date | null;
}

export interface AddedDevice {
  readonly device_number: bigint;
  readonly added_in_version: bigint;
  readonly added_at: Date;
}

const nameUser = statement(
  'user_name',
  `INSERT INTO users (user_id, root_key, device_list_version) VALUES ($1, $2, 0) ON CONFLICT (user_id) DO NOTHING`,
);
const lockUser = statement('user_lock', 'SELECT root_key FROM users WHERE user_id = $1 FOR NO KEY UPDATE');
const findDevice = statement(
  'device_find',
  'SELECT device_number, registered_keys_digest, added_in_version, revoked_at FROM devices WHERE user_id = $1 AND device_id = $2',
);
const countActive = statement(
  'devices_count_active',
  'SELECT count(*) AS active FROM devices WHERE user_id = $1 AND revoked_at IS NULL',
);
const insertDevice = statement(
  'device_insert',
  `WITH list AS (
  UPDATE users SET device_list_version = device_list_version + 1 WHERE user_id = $1 RETURNING device_list_version
), device AS (
  INSERT INTO devices (user_id, device_id, suite, identity_key, signing_key, certificate_root_key, certificate_signature, certified_at,
                       current_signed_prekey_id, current_last_resort_prekey_id, registered_keys_digest, added_in_version, writer_build,
                       created_trace_id)
  SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $12, $15, device_list_version, $16, $17 FROM list
  RETURNING device_number, added_in_version, added_at
), signed AS (
  INSERT INTO signed_prekeys (device_number, key_id, public_key, signature) SELECT device_number, $9, $10, $11 FROM device
), last_resort AS (
  INSERT INTO last_resort_prekeys (device_number, key_id, public_key, signature) SELECT device_number, $12, $13, $14 FROM device
)
SELECT device_number, added_in_version, added_at FROM device`,
);

/**
 * The user's root key, which is `rootKey` when the user is new. Holds the user until the end of the transaction, so that the
 * device list has one writer.
 */
export async function lockRootKey(tx: Transaction, userId: string, rootKey: Uint8Array): Promise<Uint8Array> {
  await tx.query(nameUser, [userId, rootKey]);
  const [user] = await tx.query<{ root_key: Buffer }>(lockUser, [userId]);
  if (!user) throw new Error('users are never deleted');
  return user.root_key;
}

export async function findRegistered(db: Queryable, { userId, deviceId }: Ref): Promise<RegisteredDevice | undefined> {
  return (await db.query<RegisteredDevice>(findDevice, [userId, deviceId]))[0];
}

export async function countActiveDevices(tx: Transaction, userId: string): Promise<number> {
  const [row] = await tx.query<{ active: bigint }>(countActive, [userId]);
  return Number(row?.active);
}

export interface Provenance {
  readonly keysDigest: Uint8Array;
  readonly certifiedAtMs: bigint;
  readonly writerBuild: string;
  /** 32 hexadecimal digits, or empty. */
  readonly traceId: string;
}

/** Adds the device, its signed and its last-resort prekey, under the next version of the device list. The user must be locked. */
export async function insertDeviceRow(
  tx: Transaction,
  device: Ref,
  keys: RegisterDeviceRequest,
  { keysDigest, certifiedAtMs, writerBuild, traceId }: Provenance,
): Promise<AddedDevice> {
  const { certificate, signedPrekey, lastResortPrekey } = wholeKeySet(keys);
  const [added] = await tx.query<AddedDevice>(insertDevice, [
    device.userId,
    device.deviceId,
    certificate.suite,
    keys.identityKey,
    keys.signingKey,
    certificate.rootKey,
    certificate.signature,
    new Date(Number(certifiedAtMs)).toISOString(),
    signedPrekey.keyId,
    signedPrekey.publicKey,
    signedPrekey.signature,
    lastResortPrekey.keyId,
    lastResortPrekey.publicKey,
    lastResortPrekey.signature,
    keysDigest,
    writerBuild,
    traceId,
  ]);
  if (!added) throw new Error('the user was not locked');
  return added;
}
