import { DeviceLogKind } from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import { appendEntry, type RecordedEntry, type Revoker } from './device-log.ts';
import { lockDevice } from './prekeys.ts';

/** A device with its stored long-term keys. */
export interface StoredDevice {
  readonly device_number: bigint;
  readonly device_id: string;
  readonly identity_key: Buffer;
  readonly signing_key: Buffer;
  readonly revoked_at: Date | null;
}

/** A build, and the trace within which it writes: 32 hexadecimal digits, or empty. */
export interface Writer {
  readonly build: string;
  readonly traceId: string;
}

/** What became of a device when it was revoked. */
export interface Revocation {
  readonly version: bigint;
  readonly entry_hash: Buffer;
  readonly revoked_at: Date;
  readonly removed_one_time: number;
  readonly removed_kem: number;
}

export interface NumberedRevocation extends Ref {
  readonly number: bigint;
  readonly revokedAt: Date;
}

const devicesOf = statement(
  'devices_of_user',
  `SELECT device_number, device_id, identity_key, signing_key, revoked_at FROM devices WHERE user_id = $1 ORDER BY device_number`,
);
const find = statement(
  'revocation_find',
  `SELECT r.version, l.entry_hash, r.revoked_at, r.removed_one_time, r.removed_kem
  FROM revocations r JOIN device_log l ON l.user_id = r.user_id AND l.version = r.version
 WHERE r.user_id = $1 AND r.device_id = $2`,
);
const empty = (kind: string, pool: string) =>
  statement(
    `prekeys_remove_${kind}`,
    `WITH removed AS (DELETE FROM ${pool} WHERE device_number = $1 RETURNING 1) SELECT count(*)::integer AS removed FROM removed`,
  );
const emptyOneTime = empty('one_time', 'unclaimed_one_time_prekeys');
const emptyKem = empty('kem', 'unclaimed_one_time_kem_prekeys');
const forgetNotice = statement('low_prekeys_forget', 'DELETE FROM low_prekey_notices WHERE device_number = $1');
const record = statement(
  'revocation_record',
  `WITH revocation AS (
  INSERT INTO revocations (user_id, device_id, version, revoked_at, removed_one_time, removed_kem) VALUES ($1, $2, $3, $4, $5, $6)
)
UPDATE devices SET revoked_at = $4, revoked_in_version = $3, revocation_writer_build = $7, revocation_trace_id = $8
 WHERE user_id = $1 AND device_id = $2`,
);
const list = statement(
  'revocations_list',
  `SELECT number, user_id AS "userId", device_id AS "deviceId", revoked_at AS "revokedAt" FROM revocations
 WHERE number > $1 ORDER BY number LIMIT $2`,
);

/** All devices that the user ever had, revoked ones included, in ascending order of their numbers. */
export function devicesOfUser(db: Queryable, userId: string): Promise<StoredDevice[]> {
  return db.query<StoredDevice>(devicesOf, [userId]);
}

/** How a device was revoked, if it was. */
export async function findRevocation(db: Queryable, { userId, deviceId }: Ref): Promise<Revocation | undefined> {
  return (await db.query<Revocation>(find, [userId, deviceId]))[0];
}

/**
 * Revokes devices of one user, who must be locked: their unclaimed prekeys are removed, each gets an entry in the log and a number among all
 * revocations. `devices` must be in ascending order of their numbers, none of them revoked.
 *
 * Locks in the order of decision 0003: the devices, their pools (X25519 first, ascending device numbers), and the numbers of revocations last.
 */
export async function revokeDevices(
  tx: Transaction,
  userId: string,
  devices: readonly StoredDevice[],
  { rootKey, revoker }: { readonly rootKey: Uint8Array; readonly revoker: Revoker },
  by: Writer,
): Promise<(RecordedEntry & { readonly deviceId: string })[]> {
  for (const { device_number } of devices) await lockDevice(tx, device_number);
  const oneTime = await removeAll(tx, emptyOneTime, devices);
  const kem = await removeAll(tx, emptyKem, devices);
  const entries: (RecordedEntry & { readonly deviceId: string })[] = [];
  for (const [i, { device_number, device_id: deviceId, identity_key, signing_key }] of devices.entries()) {
    await tx.query(forgetNotice, [device_number]);
    const entry = await appendEntry(tx, userId, {
      kind: DeviceLogKind.DEVICE_REVOKED,
      rootKey,
      device: { userId, deviceId, identityKey: identity_key, signingKey: signing_key },
      revoker,
    });
    const { version, recorded_at } = entry;
    await tx.query(record, [userId, deviceId, version, recorded_at, oneTime[i], kem[i], by.build, by.traceId]);
    entries.push({ ...entry, deviceId });
  }
  return entries;
}

/** Revocations after a number, in their order. */
export function listRevocations(db: Queryable, after: bigint, limit: number): Promise<NumberedRevocation[]> {
  return db.query<NumberedRevocation>(list, [after, limit]);
}

async function removeAll(
  tx: Transaction,
  pool: typeof emptyOneTime,
  devices: readonly StoredDevice[],
): Promise<number[]> {
  const removed: number[] = [];
  for (const { device_number } of devices) {
    const [row] = await tx.query<{ removed: number }>(pool, [device_number]);
    removed.push(row?.removed ?? 0);
  }
  return removed;
}
