import type { Ref } from '@keytrail/crypto';
import {
  type Database,
  type FencePass,
  isCheckViolation,
  isLockTimeout,
  isStatementTimeout,
  isUniqueViolation,
  type Queryable,
  type Statement,
  statement,
  type Transaction,
} from '@keytrail/storage';

/** A claim as it is stored: by caller and claim id. */
export interface Claim {
  readonly caller: string;
  /** UUID. */
  readonly claimId: string;
  readonly devices: readonly Ref[];
  /** SHA-256 over what was asked for: the devices in their order, or the users. */
  readonly devicesDigest: Uint8Array;
  /** Of a claim by users, with the versions of the device lists that `devices` are of; 0 for a user of whom nothing is told. */
  readonly users?: readonly { readonly userId: string; readonly version: bigint }[];
  /** Positions in `devices`, from 1, that the claim policy keeps from the caller. They are told as such in every repetition. */
  readonly notPermitted?: readonly number[];
  /** The database that this process knows; without it only what the database itself knows is compared. */
  readonly pass?: FencePass;
}

export interface ClaimOptions {
  /** A pool that the claim leaves with fewer prekeys than this is low. */
  readonly lowBelow: number;
  readonly signal: AbortSignal;
}

/** What a claim took from one device, in the order of `Claim.devices`. Unknown device: no number; revoked one: no signed prekey. */
export interface ClaimedRow {
  readonly device_number: bigint | null;
  readonly suite: number | null;
  readonly identity_key: Buffer | null;
  readonly signing_key: Buffer | null;
  readonly certificate_root_key: Buffer | null;
  readonly certificate_signature: Buffer | null;
  readonly certified_at: Date | null;
  readonly signed_prekey_id: bigint | null;
  readonly signed_prekey: Buffer | null;
  readonly signed_prekey_signature: Buffer | null;
  readonly one_time_prekey_id: bigint | null;
  readonly one_time_prekey: Buffer | null;
  readonly kem_prekey_id: bigint | null;
  readonly last_resort_prekey_id: bigint | null;
  /** Of the one-time KEM prekey, or of the last-resort prekey when there is none. */
  readonly kem_prekey: Buffer | null;
  readonly kem_prekey_signature: Buffer | null;
  /** The claim policy kept this device from the caller. */
  readonly not_permitted: boolean;
  /** A pool of this device is low. */
  readonly low: boolean;
  /** All one-time prekeys ever added: tells one filling of the pools from the next. */
  readonly prekeys_added: bigint | null;
}

/** A claim as it was recorded, by this call or an earlier one. */
export interface RecordedClaim {
  readonly rows: readonly ClaimedRow[];
  /** True when an earlier call recorded it: this one took nothing. */
  readonly repeated: boolean;
}

/** A device list is not at the version any more that the claim names. */
export class DeviceListsMoved extends Error {
  constructor() {
    super('a device list has changed since it was looked up');
    this.name = 'DeviceListsMoved';
  }
}

/** The claim id was used before by this caller, for other devices. Maps to REQUEST_ID_REUSED. */
export class ClaimIdReused extends Error {
  constructor() {
    super('the claim id was used before for other devices');
    this.name = 'ClaimIdReused';
  }
}

/** The database does not stand where this process knows it to have stood, or is being dealt with: nothing was taken. */
export class FenceNotPassed extends Error {
  constructor() {
    super('the database may have gone back in time');
    this.name = 'FenceNotPassed';
  }
}

// Two things are for the planner alone, in all of these statements. LIMIT 1 in the lateral look-ups keeps it from joining whole tables when it has
// not seen their size yet. Arrays in sub-selects hide their length, else it would plan every call anew: 0.9 ms a claim instead of 0.3.
const answer = `
SELECT t.device_number, t.suite, t.identity_key, t.signing_key, t.certificate_root_key, t.certificate_signature, t.certified_at,
       t.signed_prekey_id, s.public_key AS signed_prekey, s.signature AS signed_prekey_signature,
       t.one_time_prekey_id, o.public_key AS one_time_prekey, t.kem_prekey_id, t.last_resort_prekey_id,
       coalesce(k.public_key, l.public_key) AS kem_prekey, coalesce(k.signature, l.signature) AS kem_prekey_signature,
       t.low, t.prekeys_added, t.not_permitted
  FROM taken t
  LEFT JOIN LATERAL (SELECT public_key, signature FROM signed_prekeys p
                      WHERE p.device_number = t.device_number AND p.key_id = t.signed_prekey_id LIMIT 1) s ON true
  LEFT JOIN LATERAL (SELECT public_key FROM one_time_prekeys p
                      WHERE p.device_number = t.device_number AND p.key_id = t.one_time_prekey_id LIMIT 1) o ON true
  LEFT JOIN LATERAL (SELECT public_key, signature FROM one_time_kem_prekeys p
                      WHERE p.device_number = t.device_number AND p.key_id = t.kem_prekey_id LIMIT 1) k ON true
  LEFT JOIN LATERAL (SELECT public_key, signature FROM last_resort_prekeys p
                      WHERE p.device_number = t.device_number AND p.key_id = t.last_resort_prekey_id LIMIT 1) l ON true
 ORDER BY t.position`;

// Runs once in a statement, and throws: what a database hands out that went back in time has been handed out before.
const passFence = (incarnation: string, position: string, started: string) =>
  `(SELECT pass_restore_fence(${incarnation}::uuid, ${position}::bigint, ${started}::text))`;

// $1 caller, $2 claim id, $3 devices digest, $4 user ids, $5 device ids, $6 low below, $7 to $9 the pass of the fence.
// Takes the oldest prekey of each pool that nobody holds locked, records the claim and answers: one statement, one commit, and it
// never waits for a prekey. The last-resort and signed prekeys are only read. docs/decisions/0003-claims.md has the reasons.
const claiming = ({
  permitted,
  fresh,
  columns,
  values,
  notPermitted,
}: Readonly<Record<string, string>>) => `WITH asked AS MATERIALIZED (
  SELECT a.position, d.*, CASE WHEN d.revoked_at IS NULL${permitted} THEN d.device_number END AS claimable
    FROM unnest((SELECT $4::text[]), (SELECT $5::text[])) WITH ORDINALITY AS a (asked_user, asked_device, position)
    LEFT JOIN LATERAL (SELECT device_number, revoked_at, suite, identity_key, signing_key, certificate_root_key,
                              certificate_signature, certified_at, current_signed_prekey_id, current_last_resort_prekey_id,
                              one_time_prekeys_added, kem_prekeys_added
                         FROM devices WHERE user_id = a.asked_user AND device_id = a.asked_device LIMIT 1) d ON true
   WHERE ${passFence('$7', '$8', '$9')} AND NOT EXISTS (SELECT FROM claims WHERE caller = $1 AND claim_id = $2)${fresh}
), taken AS MATERIALIZED (
  SELECT a.position, a.device_number, a.suite, a.identity_key, a.signing_key, a.certificate_root_key, a.certificate_signature,
         a.certified_at, o.seq AS one_time_seq, o.key_id AS one_time_prekey_id, k.seq AS kem_seq, k.key_id AS kem_prekey_id,
         CASE WHEN a.claimable IS NOT NULL THEN a.current_signed_prekey_id END AS signed_prekey_id,
         CASE WHEN a.claimable IS NOT NULL AND k.seq IS NULL THEN a.current_last_resort_prekey_id END AS last_resort_prekey_id,
         (o.seq IS NULL AND EXISTS (SELECT FROM unclaimed_one_time_prekeys p WHERE p.device_number = a.claimable OFFSET 0))
         OR (k.seq IS NULL AND EXISTS (SELECT FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = a.claimable OFFSET 0))
           AS passed_over,
         a.claimable IS NOT NULL AND (a.one_time_prekeys_added - coalesce(o.seq, a.one_time_prekeys_added) < $6
                                   OR a.kem_prekeys_added - coalesce(k.seq, a.kem_prekeys_added) < $6) AS low,
         a.one_time_prekeys_added + a.kem_prekeys_added AS prekeys_added, ${notPermitted} AS not_permitted
    FROM asked a
    LEFT JOIN LATERAL (SELECT p.seq, p.key_id FROM unclaimed_one_time_prekeys p WHERE p.device_number = a.claimable
                        ORDER BY p.seq LIMIT 1 FOR UPDATE SKIP LOCKED) o ON true
    LEFT JOIN LATERAL (SELECT p.seq, p.key_id FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = a.claimable
                        ORDER BY p.seq LIMIT 1 FOR UPDATE SKIP LOCKED) k ON true
), one_time AS (
  DELETE FROM unclaimed_one_time_prekeys p USING taken t WHERE p.device_number = t.device_number AND p.seq = t.one_time_seq
), kem AS (
  DELETE FROM unclaimed_one_time_kem_prekeys p USING taken t WHERE p.device_number = t.device_number AND p.seq = t.kem_seq
), recorded AS (
  INSERT INTO claims (caller, claim_id, devices_digest, device_numbers, signed_prekey_ids, last_resort_prekey_ids,
                      one_time_prekey_ids, kem_prekey_ids, ${columns}passed_over)
  SELECT $1, $2, $3, array_agg(device_number ORDER BY position), array_agg(signed_prekey_id ORDER BY position),
         array_agg(last_resort_prekey_id ORDER BY position), array_agg(one_time_prekey_id ORDER BY position),
         array_agg(kem_prekey_id ORDER BY position), ${values}bool_or(passed_over)
    FROM taken HAVING count(*) > 0
)${answer}`;

export const claimWithoutWaiting = statement(
  'claim_prekey_bundles',
  claiming({ permitted: '', fresh: '', columns: '', values: '', notPermitted: 'false' }),
);

// A version of 0 is of a user of whom nothing is told, and stands for none.
const listsMoved = (userIds: string, versions: string) => `EXISTS (
     SELECT FROM unnest((SELECT ${userIds}::text[]), (SELECT ${versions}::bigint[])) AS r (user_id, version)
      CROSS JOIN LATERAL (SELECT device_list_version FROM users u WHERE u.user_id = r.user_id LIMIT 1) u
      WHERE r.version > 0 AND u.device_list_version <> r.version)`;

// Besides: $10 user ids and $11 the versions of their device lists, or NULL; $12 positions that are not permitted, or NULL.
const claimFromUsers = statement(
  'claim_prekey_bundles_from_users',
  claiming({
    permitted: " AND a.position <> ALL (coalesce((SELECT $12::integer[]), '{}'))",
    fresh: ` AND NOT ${listsMoved('$10', '$11')}`,
    columns: 'user_ids, device_list_versions, not_permitted, ',
    values: '(SELECT $10::text[]), (SELECT $11::bigint[]), (SELECT $12::integer[]), ',
    notPermitted: "a.position = ANY (coalesce((SELECT $12::integer[]), '{}'))",
  }),
);

// Of users who have no devices, or of whom nothing is told: a repetition must not find those that came since.
const recordNoDevices = statement(
  'claim_record_no_devices',
  `INSERT INTO claims (caller, claim_id, devices_digest, device_numbers, signed_prekey_ids, last_resort_prekey_ids,
                       one_time_prekey_ids, kem_prekey_ids, passed_over, user_ids, device_list_versions)
   SELECT $1, $2, $3, '{}', '{}', '{}', '{}', '{}', false, $4::text[], $5::bigint[] WHERE ${passFence('$6', '$7', '$8')}
   ON CONFLICT DO NOTHING RETURNING claim_id`,
);

const readDigest = statement(
  'claim_read_digest',
  'SELECT devices_digest FROM claims WHERE caller = $1 AND claim_id = $2',
);

// $1 caller, $2 claim id, $3 low below.
const readRecorded = statement(
  'claim_read_recorded',
  `WITH taken AS (
  SELECT r.position, r.device_number, r.signed_prekey_id, r.last_resort_prekey_id, r.one_time_prekey_id, r.kem_prekey_id,
         d.suite, d.identity_key, d.signing_key, d.certificate_root_key, d.certificate_signature, d.certified_at,
         d.one_time_prekeys_added + d.kem_prekeys_added AS prekeys_added,
         r.position = ANY (coalesce(c.not_permitted, '{}')) AS not_permitted,
         r.signed_prekey_id IS NOT NULL AND d.revoked_at IS NULL AND
           (d.one_time_prekeys_added - coalesce(o.seq - 1, d.one_time_prekeys_added) < $3
            OR d.kem_prekeys_added - coalesce(k.seq - 1, d.kem_prekeys_added) < $3) AS low
    FROM claims c
   CROSS JOIN LATERAL unnest(c.device_numbers, c.signed_prekey_ids, c.last_resort_prekey_ids, c.one_time_prekey_ids, c.kem_prekey_ids)
         WITH ORDINALITY AS r (device_number, signed_prekey_id, last_resort_prekey_id, one_time_prekey_id, kem_prekey_id, position)
    LEFT JOIN LATERAL (SELECT * FROM devices WHERE device_number = r.device_number LIMIT 1) d ON true
    LEFT JOIN LATERAL (SELECT p.seq FROM unclaimed_one_time_prekeys p WHERE p.device_number = r.device_number
                        ORDER BY p.seq LIMIT 1) o ON true
    LEFT JOIN LATERAL (SELECT p.seq FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = r.device_number
                        ORDER BY p.seq LIMIT 1) k ON true
   WHERE c.caller = $1 AND c.claim_id = $2
)${answer}`,
);

const findDevices = statement(
  'claim_find_devices',
  `SELECT d.device_number, d.revoked_at IS NULL AND a.position <> ALL (coalesce($3::integer[], '{}')) AS claimable, d.current_signed_prekey_id, d.current_last_resort_prekey_id
     FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS a (user_id, device_id, position)
     LEFT JOIN devices d ON d.user_id = a.user_id AND d.device_id = a.device_id
    ORDER BY a.position`,
);

// $1 device numbers, ascending. One device after the other in that order: a prekey that nobody holds, else the wait for the ones
// that are held. The lateral join is what fixes the order.
const takeWaiting = (pool: string) => `WITH locked AS MATERIALIZED (
  SELECT d.device_number, p.seq FROM unnest($1::bigint[]) WITH ORDINALITY AS d (device_number, position)
   CROSS JOIN LATERAL (
     SELECT free_or_held.seq FROM (
       SELECT * FROM (SELECT p.seq FROM ${pool} p WHERE p.device_number = d.device_number ORDER BY p.seq LIMIT 1 FOR UPDATE SKIP LOCKED) free
       UNION ALL
       SELECT * FROM (SELECT p.seq FROM ${pool} p WHERE p.device_number = d.device_number ORDER BY p.seq LIMIT 1 FOR UPDATE) held
     ) free_or_held LIMIT 1) p
)
DELETE FROM ${pool} p USING locked l WHERE p.device_number = l.device_number AND p.seq = l.seq
RETURNING p.device_number, p.key_id`;
const takeOneTimeWaiting = statement('claim_take_one_time_waiting', takeWaiting('unclaimed_one_time_prekeys'));
const takeKemWaiting = statement('claim_take_kem_waiting', takeWaiting('unclaimed_one_time_kem_prekeys'));

// Looks again whether a device that got nothing has an unclaimed prekey by now: the constraint on passed_over refuses the claim then.
const record = statement(
  'claim_record',
  `INSERT INTO claims (caller, claim_id, devices_digest, device_numbers, signed_prekey_ids, last_resort_prekey_ids,
                       one_time_prekey_ids, kem_prekey_ids, user_ids, device_list_versions, not_permitted, passed_over)
   SELECT $1::text, $2::uuid, $3::bytea, $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
     $9::text[], $10::bigint[], $11::integer[],
     EXISTS (SELECT FROM unnest($4::bigint[], $5::bigint[], $7::bigint[], $8::bigint[]) AS t (device_number, signed_prekey_id, one_time_prekey_id, kem_prekey_id)
              WHERE signed_prekey_id IS NOT NULL
                AND (one_time_prekey_id IS NULL AND EXISTS (SELECT FROM unclaimed_one_time_prekeys p WHERE p.device_number = t.device_number OFFSET 0)
                  OR kem_prekey_id IS NULL AND EXISTS (SELECT FROM unclaimed_one_time_kem_prekeys p WHERE p.device_number = t.device_number OFFSET 0)))
    WHERE ${passFence('$12', '$13', '$14')} AND NOT ${listsMoved('$9', '$10')}
   RETURNING claim_id`,
);

/**
 * Takes a bundle of each device. Idempotent by caller and claim id: a repetition, also a concurrent one, gets the same rows.
 * A device is left without a one-time prekey only when none is unclaimed: prekeys that other claims hold are waited for.
 * Throws ClaimIdReused, DeviceListsMoved, FenceNotPassed, and the signal's reason when it aborts while waiting.
 */
export async function claimPrekeyBundles(db: Database, claim: Claim, options: ClaimOptions): Promise<RecordedClaim> {
  try {
    return await takeOrRead(db, claim, options);
  } catch (error) {
    if (isCheckViolation(error, 'restore_fence_is_passed')) throw new FenceNotPassed();
    throw error;
  }
}

async function takeOrRead(db: Database, claim: Claim, options: ClaimOptions): Promise<RecordedClaim> {
  for (;;) {
    options.signal.throwIfAborted();
    const rows = await takeAtOnce(db, claim, options);
    if (rows) return { rows, repeated: false };
    const recorded = await readClaim(db, claim, options);
    if (recorded) return { rows: recorded, repeated: true };
    await takePatiently(db, claim);
  }
}

/** Undefined when the claim is recorded already, or must wait. */
async function takeAtOnce(db: Database, claim: Claim, { lowBelow }: ClaimOptions): Promise<ClaimedRow[] | undefined> {
  const { caller, claimId, devicesDigest, devices, users, notPermitted } = claim;
  const versions = versionsOf(users);
  const pass = passOf(claim);
  if (devices.length === 0) {
    const [recorded] = await db.query(recordNoDevices, [caller, claimId, devicesDigest, ...versions, ...pass]);
    return recorded ? [] : undefined;
  }
  const userIds = devices.map(({ userId }) => userId);
  const deviceIds = devices.map(({ deviceId }) => deviceId);
  const values = [caller, claimId, devicesDigest, userIds, deviceIds, lowBelow, ...pass];
  try {
    const rows =
      users === undefined && notPermitted === undefined
        ? await takeBy(db, devices.length, claimWithoutWaiting, values)
        : await takeBy(db, devices.length, claimFromUsers, [...values, ...versions, notPermitted ?? null]);
    return rows.length > 0 ? rows : undefined;
  } catch (error) {
    if (isRecordedAlready(error) || hasPassedOver(error)) return undefined;
    throw error;
  }
}

/** Claims of few devices share connections; one of many devices would hold up those behind it. */
const fewDevices = 8;

async function takeBy(db: Database, devices: number, taking: Statement, values: unknown[]): Promise<ClaimedRow[]> {
  if (devices > fewDevices) return db.query<ClaimedRow>(taking, values);
  try {
    return await db.pipelined.query<ClaimedRow>(taking, values);
  } catch (error) {
    // Another call holds this claim id: it is waited for without holding up other claims.
    if (!isLockTimeout(error)) throw error;
    return db.query<ClaimedRow>(taking, values);
  }
}

/** Where nothing is known of the database but what it knows itself. */
export const noPass = [null, null, null] as const;

function passOf({ pass }: Claim): readonly (string | bigint | null)[] {
  return pass ? [pass.incarnation, pass.position, pass.serverStarted] : noPass;
}

function versionsOf(users: Claim['users']): [string[] | null, bigint[] | null] {
  return [users?.map(({ userId }) => userId) ?? null, users?.map(({ version }) => version) ?? null];
}

/** What an earlier call took under the claim id, if there was one. Throws ClaimIdReused. */
export async function readClaim(
  db: Queryable,
  { caller, claimId, devicesDigest }: Pick<Claim, 'caller' | 'claimId' | 'devicesDigest'>,
  { lowBelow }: Pick<ClaimOptions, 'lowBelow'>,
): Promise<ClaimedRow[] | undefined> {
  const [recorded] = await db.query<{ devices_digest: Buffer }>(readDigest, [caller, claimId]);
  if (!recorded) return undefined;
  if (!recorded.devices_digest.equals(devicesDigest)) throw new ClaimIdReused();
  return db.query<ClaimedRow>(readRecorded, [caller, claimId, lowBelow]);
}

async function takePatiently(db: Database, claim: Claim): Promise<void> {
  try {
    await db.transaction((tx) => claimWaiting(tx, claim));
  } catch (error) {
    // All three are answered by starting again: somebody recorded the claim, prekeys were added meanwhile, or the wait was long.
    if (!isRecordedAlready(error) && !hasPassedOver(error) && !isStatementTimeout(error)) throw error;
  }
}

/**
 * Takes and records within the transaction, waiting for prekeys that others hold: pool by pool and by ascending device number, the
 * one order in which anybody ever waits for them. Exported for the tests of claims that roll back.
 */
export async function claimWaiting(tx: Transaction, claim: Claim): Promise<void> {
  const devices = await tx.query<FoundDevice>(findDevices, [
    claim.devices.map(({ userId }) => userId),
    claim.devices.map(({ deviceId }) => deviceId),
    claim.notPermitted ?? null,
  ]);
  const claimable = devices.flatMap((d) => (d.claimable && d.device_number !== null ? [d.device_number] : []));
  claimable.sort((a, b) => (a < b ? -1 : 1));
  const oneTime = byDevice(await tx.query<TakenPrekey>(takeOneTimeWaiting, [claimable]));
  const kem = byDevice(await tx.query<TakenPrekey>(takeKemWaiting, [claimable]));
  const taken = (prekeys: ReadonlyMap<bigint, bigint>) =>
    devices.map((d) => (d.device_number === null ? null : (prekeys.get(d.device_number) ?? null)));
  const kemIds = taken(kem);
  const [recorded] = await tx.query(record, [
    claim.caller,
    claim.claimId,
    claim.devicesDigest,
    devices.map((d) => d.device_number),
    devices.map((d) => (d.claimable ? d.current_signed_prekey_id : null)),
    devices.map((d, position) => (d.claimable && kemIds[position] === null ? d.current_last_resort_prekey_id : null)),
    taken(oneTime),
    kemIds,
    ...versionsOf(claim.users),
    claim.notPermitted ?? null,
    ...passOf(claim),
  ]);
  if (!recorded) throw new DeviceListsMoved();
}

interface FoundDevice {
  readonly device_number: bigint | null;
  readonly claimable: boolean;
  readonly current_signed_prekey_id: bigint | null;
  readonly current_last_resort_prekey_id: bigint | null;
}

interface TakenPrekey {
  readonly device_number: bigint;
  readonly key_id: bigint;
}

function byDevice(prekeys: readonly TakenPrekey[]): Map<bigint, bigint> {
  return new Map(prekeys.map(({ device_number, key_id }) => [device_number, key_id]));
}

function isRecordedAlready(error: unknown): boolean {
  return isUniqueViolation(error, 'claims_pkey');
}

function hasPassedOver(error: unknown): boolean {
  return isCheckViolation(error, 'claims_never_pass_over_a_locked_prekey');
}
