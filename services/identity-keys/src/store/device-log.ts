import { type DeviceCertificate, type DeviceLogKind, RevokedBy, type RootKeyChange } from '@keytrail/contracts';
import { certifiedAtMs, type DeviceKeys } from '@keytrail/crypto';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';

/** Who revoked a device: a device of the user with the root key's signature, an operator, or a change of the root key. */
export type Revoker =
  | {
      readonly by: typeof RevokedBy.USER_DEVICE;
      readonly revokingDeviceId: string;
      readonly signedAtMs: bigint;
      readonly signature: Uint8Array;
    }
  | { readonly by: typeof RevokedBy.OPERATOR }
  | { readonly by: typeof RevokedBy.ROOT_KEY_CHANGE; readonly revokingDeviceId: string };

/** A change to record; the root key is the user's after it. */
export type Change = { readonly rootKey: Uint8Array } & (
  | {
      readonly kind: typeof DeviceLogKind.DEVICE_ADDED | typeof DeviceLogKind.DEVICE_RECERTIFIED;
      readonly device: DeviceKeys;
      readonly certificate: DeviceCertificate;
    }
  | { readonly kind: typeof DeviceLogKind.DEVICE_REVOKED; readonly device: DeviceKeys; readonly revoker: Revoker }
  | { readonly kind: typeof DeviceLogKind.ROOT_KEY_CHANGED; readonly change: RootKeyChange }
);

export interface RecordedEntry {
  readonly version: bigint;
  readonly entry_hash: Buffer;
  readonly recorded_at: Date;
}

/** One entry of one log asked for; a log without entries to tell has one row without an entry. */
export interface DeviceLogRow {
  /** From 1, in the order asked. */
  readonly position: bigint;
  readonly device_list_version: bigint | null;
  readonly log_head: Buffer | null;
  readonly version: bigint | null;
  readonly kind: DeviceLogKind;
  readonly previous_hash: Buffer;
  readonly recorded_at: Date;
  readonly root_key: Buffer;
  readonly device_id: string | null;
  readonly identity_key: Buffer | null;
  readonly signing_key: Buffer | null;
  readonly certified_at: Date | null;
  readonly certificate_signature: Buffer | null;
  readonly revoked_by: RevokedBy | null;
  readonly revoking_device_id: string | null;
  readonly revocation_signed_at: Date | null;
  readonly revocation_signature: Buffer | null;
  readonly previous_root_key: Buffer | null;
  readonly previous_signature: Buffer | null;
  readonly new_signature: Buffer | null;
  readonly entry_hash: Buffer;
}

// The time never goes back along a log, whatever the clock does.
const append = statement(
  'device_log_append',
  `INSERT INTO device_log (user_id, version, previous_hash, recorded_at, kind, root_key, device_id, identity_key, signing_key, certified_at,
                        certificate_signature, revoked_by, revoking_device_id, revocation_signed_at, revocation_signature,
                        previous_root_key, previous_signature, new_signature)
SELECT u.user_id, u.device_list_version + 1, coalesce(u.log_head, decode(repeat('00', 32), 'hex')),
       greatest(date_trunc('milliseconds', clock_timestamp()), newest.recorded_at),
       $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15
  FROM users u LEFT JOIN device_log newest ON newest.user_id = u.user_id AND newest.version = u.device_list_version
 WHERE u.user_id = $1
RETURNING version, entry_hash, recorded_at`,
);

/** Records a change as the newest entry of the user's log, which the user's row then names. The user must be locked. */
export async function appendEntry(tx: Transaction, userId: string, change: Change): Promise<RecordedEntry> {
  const device = 'device' in change ? change.device : undefined;
  const certificate = 'certificate' in change ? change.certificate : undefined;
  const revoker = 'revoker' in change ? change.revoker : undefined;
  const signed = revoker?.by === RevokedBy.USER_DEVICE ? revoker : undefined;
  const root = 'change' in change ? change.change : undefined;
  const [entry] = await tx.query<RecordedEntry>(append, [
    userId,
    change.kind,
    change.rootKey,
    device?.deviceId,
    device?.identityKey,
    device?.signingKey,
    certificate && timeOf(certifiedAtMs(certificate) ?? 0n),
    certificate?.signature,
    revoker?.by,
    revoker && 'revokingDeviceId' in revoker ? revoker.revokingDeviceId : undefined,
    signed && timeOf(signed.signedAtMs),
    signed?.signature,
    root?.previousRootKey,
    root?.previousSignature,
    root?.newSignature,
  ]);
  if (!entry) throw new Error('the user was not locked');
  return entry;
}

// Versions have no gaps, so what there is to tell is known without counting, and an answer is cut where it is full. The sub-selects hide
// the lengths of the arrays from the planner, which would plan every call anew; see claims.ts.
const read = statement(
  'device_log_read',
  `SELECT a.position, a.device_list_version, a.log_head, e.*
  FROM (SELECT position, asked_user, after_version, device_list_version, log_head,
               greatest(least($3, sum(greatest(device_list_version - after_version, 0)) OVER (ORDER BY position))
                        - sum(greatest(device_list_version - after_version, 0)) OVER (ORDER BY position)
                        + greatest(device_list_version - after_version, 0), 0) AS told
          FROM unnest((SELECT $1::text[]), (SELECT $2::bigint[])) WITH ORDINALITY AS asked (asked_user, after_version, position)
          LEFT JOIN LATERAL (SELECT device_list_version, log_head FROM users WHERE user_id = asked_user LIMIT 1) u ON true) a
  LEFT JOIN LATERAL (SELECT version, kind, previous_hash, recorded_at, root_key, device_id, identity_key, signing_key, certified_at,
                            certificate_signature, revoked_by, revoking_device_id, revocation_signed_at, revocation_signature,
                            previous_root_key, previous_signature, new_signature, entry_hash
                       FROM device_log l
                      WHERE l.user_id = a.asked_user AND l.version > a.after_version AND l.version <= a.after_version + a.told) e ON true
 ORDER BY a.position, e.version`,
);

export interface LogPosition {
  readonly userId: string;
  readonly afterVersion: bigint;
}

/** The logs of users after a version each, in the order asked, at most `limit` entries in all. */
export function readDeviceLogs(
  db: Queryable,
  positions: readonly LogPosition[],
  limit: number,
): Promise<DeviceLogRow[]> {
  return db.query<DeviceLogRow>(read, [
    positions.map(({ userId }) => userId),
    positions.map(({ afterVersion }) => afterVersion),
    limit,
  ]);
}

function timeOf(ms: bigint): string {
  return new Date(Number(ms)).toISOString();
}
