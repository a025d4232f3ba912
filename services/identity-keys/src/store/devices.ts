import type { RegisterDeviceRequest } from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import { wholeKeySet } from '../domain/key-set.ts';
import type { RecordedEntry } from './device-log.ts';

/** A device that is there already. */
export interface RegisteredDevice {
  readonly device_number: bigint;
  readonly registered_keys_digest: Buffer;
  readonly added_in_version: bigint;
  /** Of the log's entry of that version. */
  readonly entry_hash: Buffer;
  readonly revoked_at: Date | null;
}

/** A user who is locked. */
export interface LockedUser {
  readonly root_key: Buffer;
  readonly device_list_version: bigint;
  readonly erased_at: Date | null;
}

const nameUser = statement(
  'user_name',
  `WITH named AS (
  INSERT INTO users (user_id, root_key, device_list_version) VALUES ($1, $2, 0) ON CONFLICT (user_id) DO NOTHING RETURNING user_id, root_key
)
INSERT INTO root_keys (user_id, root_key, since_version) SELECT user_id, root_key, 1 FROM named`,
);
const lock = statement(
  'user_lock',
  'SELECT root_key, device_list_version, erased_at FROM users WHERE user_id = $1 FOR NO KEY UPDATE',
);
const findDevice = statement(
  'device_find',
  `SELECT d.device_number, d.registered_keys_digest, d.added_in_version, l.entry_hash, d.revoked_at
  FROM devices d JOIN device_log l ON l.user_id = d.user_id AND l.version = d.added_in_version
 WHERE d.user_id = $1 AND d.device_id = $2`,
);
const count = statement(
  'devices_count',
  'SELECT count(*) FILTER (WHERE revoked_at IS NULL) AS active, count(*) AS ever FROM devices WHERE user_id = $1',
);
const insertDevice = statement(
  'device_insert',
  `WITH device AS (
  INSERT INTO devices (user_id, device_id, suite, identity_key, signing_key, certificate_root_key, certificate_signature, certified_at,
                       current_signed_prekey_id, current_last_resort_prekey_id, registered_keys_digest, added_in_version,
                       certified_in_version, added_at, writer_build, created_trace_id)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $12, $15, $16, $16, $17, $18, $19)
  RETURNING device_number
), signed AS (
  INSERT INTO signed_prekeys (device_number, key_id, public_key, signature) SELECT device_number, $9, $10, $11 FROM device
), last_resort AS (
  INSERT INTO last_resort_prekeys (device_number, key_id, public_key, signature) SELECT device_number, $12, $13, $14 FROM device
)
SELECT device_number FROM device`,
);

/**
 * Holds the user, if there is such a user, until the end of the transaction: a device list has one writer. Everything else that writes about
 * a user's devices is locked after this.
 */
export async function lockUser(tx: Transaction, userId: string): Promise<LockedUser | undefined> {
  return (await tx.query<LockedUser>(lock, [userId]))[0];
}

/** As `lockUser`; a new user gets `rootKey`. */
export async function lockOrNameUser(tx: Transaction, userId: string, rootKey: Uint8Array): Promise<LockedUser> {
  await tx.query(nameUser, [userId, rootKey]);
  const user = await lockUser(tx, userId);
  if (!user) throw new Error('a user who is named is there, or erased and refused');
  return user;
}

export async function findRegistered(db: Queryable, { userId, deviceId }: Ref): Promise<RegisteredDevice | undefined> {
  return (await db.query<RegisteredDevice>(findDevice, [userId, deviceId]))[0];
}

/** The devices that a user has, and all that the user ever had. The user must be locked. */
export async function countDevices(tx: Transaction, userId: string): Promise<{ active: number; ever: number }> {
  const [row] = await tx.query<{ active: bigint; ever: bigint }>(count, [userId]);
  return { active: Number(row?.active), ever: Number(row?.ever) };
}

export interface Provenance {
  readonly keysDigest: Uint8Array;
  readonly certifiedAtMs: bigint;
  readonly writerBuild: string;
  /** 32 hexadecimal digits, or empty. */
  readonly traceId: string;
}

/** Adds the device, its signed and its last-resort prekey, as the log's entry says; returns its number. The user must be locked. */
export async function insertDeviceRow(
  tx: Transaction,
  device: Ref,
  keys: RegisterDeviceRequest,
  entry: RecordedEntry,
  { keysDigest, certifiedAtMs, writerBuild, traceId }: Provenance,
): Promise<bigint> {
  const { certificate, signedPrekey, lastResortPrekey } = wholeKeySet(keys);
  const [added] = await tx.query<{ device_number: bigint }>(insertDevice, [
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
    entry.version,
    entry.recorded_at,
    writerBuild,
    traceId,
  ]);
  if (!added) throw new Error('a device was inserted without an answer');
  return added.device_number;
}
