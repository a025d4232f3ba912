import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import { currentTraceparent } from '@keytrail/telemetry';
import type { NamedDevice } from '../domain/completeness.ts';

export interface Revocation extends NamedDevice {
  readonly revokedAt: Date;
}

const holdBackCommits = statement(
  'revocations_hold_back_commits',
  `SELECT pg_advisory_xact_lock(hashtext('conversation revocations'))`,
);
const holdBackRevocations = statement(
  'commits_hold_back_revocations',
  `SELECT pg_advisory_xact_lock_shared(hashtext('conversation revocations'))`,
);

const insertRevoked = statement(
  'revoked_devices_insert',
  `INSERT INTO revoked_devices (user_id, device_id, revoked_at)
   SELECT DISTINCT ON (user_id, device_id) user_id, device_id, revoked_at
   FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS told (user_id, device_id, revoked_at)
   ORDER BY user_id, device_id
   ON CONFLICT DO NOTHING RETURNING user_id`,
);

const insertChanges = statement(
  'identity_changes_insert',
  `INSERT INTO identity_changes (user_id, marks, traceparent)
   SELECT DISTINCT user_id, $2::boolean, $3 FROM unnest($1::text[]) AS changed (user_id) ORDER BY user_id
   ON CONFLICT (user_id) DO UPDATE
     SET marks = identity_changes.marks OR excluded.marks, told_to = '', traceparent = excluded.traceparent,
         marked_to = CASE WHEN excluded.marks THEN NULL ELSE identity_changes.marked_to END`,
);

const findRevoked = statement(
  'revoked_device_find',
  'SELECT revoked_at FROM revoked_devices WHERE user_id = $1 AND device_id = $2',
);

const revokedAmong = statement(
  'revoked_devices_among',
  `SELECT r.user_id, r.device_id FROM unnest($1::text[], $2::text[]) AS named (user_id, device_id)
   JOIN revoked_devices r USING (user_id, device_id) ORDER BY 1, 2`,
);

/**
 * Takes devices into the list of the revoked, and their users' conversations into what is to be reached; how many were new. Waits for
 * commits of sessions that looked into the list before, so that whoever reaches conversations afterwards finds theirs.
 */
export async function noteRevokedDevices(tx: Transaction, revocations: readonly Revocation[]): Promise<number> {
  await tx.query(holdBackCommits, []);
  const noted = await tx.query<{ user_id: string }>(insertRevoked, [
    revocations.map(({ userId }) => userId),
    revocations.map(({ deviceId }) => deviceId),
    revocations.map(({ revokedAt }) => revokedAt),
  ]);
  if (noted.length > 0) await tx.query(insertChanges, [noted.map((row) => row.user_id), true, currentTraceparent()]);
  return noted.length;
}

/** A user's devices or root key changed in a way that peers should look at, without a device that must not read on. */
export async function noteChangedIdentity(tx: Transaction, userId: string): Promise<void> {
  await tx.query(insertChanges, [[userId], false, currentTraceparent()]);
}

/** Since when the device is revoked, as far as it is known here. */
export async function revokedSince(db: Queryable, { userId, deviceId }: NamedDevice): Promise<Date | undefined> {
  const [row] = await db.query<{ revoked_at: Date }>(findRevoked, [userId, deviceId]);
  return row?.revoked_at;
}

/** Those of the devices that are known to be revoked. */
export async function revokedDevicesAmong(db: Queryable, devices: readonly NamedDevice[]): Promise<NamedDevice[]> {
  const rows = await db.query<{ user_id: string; device_id: string }>(revokedAmong, [
    devices.map(({ userId }) => userId),
    devices.map(({ deviceId }) => deviceId),
  ]);
  return rows.map((row) => ({ userId: row.user_id, deviceId: row.device_id }));
}

/**
 * Those of the devices that are revoked. No further one becomes known before the transaction ends, so that what it commits with this
 * answer is either without them or reached by the rotation that their revocation makes due. To be asked before any row is locked.
 */
export async function revokedUntilCommit(tx: Transaction, devices: readonly NamedDevice[]): Promise<NamedDevice[]> {
  await tx.query(holdBackRevocations, []);
  return revokedDevicesAmong(tx, devices);
}
