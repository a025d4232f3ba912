import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { NamedDevice } from '../domain/completeness.ts';
import type { DeviceAsked } from '../domain/rotation-asking.ts';

/** A conversation whose rotation is due, claimed for one look. */
export interface DueRotation {
  readonly conversationId: string;
  readonly epoch: bigint;
  /** Looks in a row that found nobody to ask. */
  readonly waits: number;
  readonly version: bigint;
}

interface DueRow {
  conversation_id: string;
  epoch: bigint;
  waits: number;
  version: bigint;
}

// A claim is a lease on the look: whoever claims has `$2` milliseconds before another replica takes it up again.
const claimDue = statement(
  'rotations_claim_due',
  `UPDATE rotations_due SET next_attempt_at = now() + $2 * interval '1 millisecond', version = version + 1
   WHERE conversation_id IN (
     SELECT conversation_id FROM rotations_due
     WHERE next_attempt_at <= now() AND due_since <= now() - $3 * interval '1 millisecond'
     ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED)
   RETURNING conversation_id, epoch, waits, version`,
);

const readAsks = statement(
  'rotation_asks_read',
  `SELECT user_id, device_id, asked_at, asked_until, times, ended_at IS NOT NULL AS ended FROM rotation_asks
   WHERE conversation_id = $1 ORDER BY asked_at`,
);

// The last messages alone: who wrote long ago is no likelier to be at hand than the others.
const readLikely = statement(
  'rotation_likely_devices',
  `WITH recent AS (
     SELECT sender_user_id AS user_id, sender_device_id AS device_id, sequence FROM messages
     WHERE conversation_id = $1 AND sequence > (SELECT last_sequence - 100 FROM conversations WHERE conversation_id = $1)
       AND erased_at IS NULL)
   SELECT user_id, device_id, max(sequence) AS last FROM recent GROUP BY 1, 2
   UNION ALL
   SELECT initiator_user_id, initiator_device_id, 0 FROM epochs WHERE conversation_id = $1 AND epoch = $2
   ORDER BY last DESC`,
);

const readNow = statement('rotation_now', 'SELECT now() AS now');

const saveLook = statement(
  'rotation_look_save',
  `UPDATE rotations_due SET next_attempt_at = $3, waits = $4, version = version + 1
   WHERE conversation_id = $1 AND version = $2 RETURNING true AS saved`,
);

const endLook = statement(
  'rotation_look_forever',
  `UPDATE rotations_due SET next_attempt_at = 'infinity', version = version + 1 WHERE conversation_id = $1 AND version = $2`,
);

const endAsks = statement(
  'rotation_asks_end',
  'UPDATE rotation_asks SET ended_at = now() WHERE conversation_id = $1 AND ended_at IS NULL',
);

const ask = statement(
  'rotation_ask',
  `INSERT INTO rotation_asks (conversation_id, user_id, device_id, asked_at, asked_until) VALUES ($1, $2, $3, $4, $5)
   ON CONFLICT (conversation_id, user_id, device_id) DO UPDATE
     SET asked_at = excluded.asked_at, asked_until = excluded.asked_until, times = rotation_asks.times + 1, ended_at = NULL, declined = false`,
);

const decline = statement(
  'rotation_decline',
  `WITH due AS (
     UPDATE rotations_due r SET next_attempt_at = now(), version = version + 1
     WHERE r.conversation_id = $1 AND r.epoch = $2 AND EXISTS (
       SELECT FROM rotation_asks a WHERE a.conversation_id = $1 AND a.user_id = $3 AND a.device_id = $4 AND a.ended_at IS NULL)
     RETURNING r.conversation_id)
   UPDATE rotation_asks a SET ended_at = now(), declined = true FROM due
   WHERE a.conversation_id = due.conversation_id AND a.user_id = $3 AND a.device_id = $4 AND a.ended_at IS NULL
   RETURNING true AS declined`,
);

// Not those where a device is being asked. In the order of their ids, as two devices of a user may attach at once.
const wakeOfUser = statement(
  'rotations_wake_of_user',
  `UPDATE rotations_due SET next_attempt_at = now(), version = version + 1
   WHERE conversation_id IN (
     SELECT r.conversation_id FROM rotations_due r
     JOIN memberships m ON m.conversation_id = r.conversation_id AND m.user_id = $1 AND m.to_epoch IS NULL
     WHERE r.next_attempt_at > now() AND r.next_attempt_at < 'infinity' AND NOT EXISTS (
       SELECT FROM rotation_asks a WHERE a.conversation_id = r.conversation_id AND a.ended_at IS NULL AND a.asked_until > now())
     ORDER BY r.conversation_id FOR UPDATE OF r)
   RETURNING true AS woken`,
);

const standing = statement(
  'rotation_standing',
  `SELECT r.epoch, r.due_since, a.user_id, a.device_id, a.asked_until FROM rotations_due r
   LEFT JOIN rotation_asks a ON a.conversation_id = r.conversation_id AND a.ended_at IS NULL AND a.asked_until > now()
   WHERE r.conversation_id = $1`,
);

const dueOfUser = statement(
  'rotations_due_of_user',
  `SELECT r.conversation_id FROM memberships m JOIN rotations_due r ON r.conversation_id = m.conversation_id
   WHERE m.user_id = $1 AND m.to_epoch IS NULL ORDER BY r.due_since, r.conversation_id LIMIT $2`,
);

/** Claims up to `most` conversations at which a look is due, and which have been due for `graceMs`. */
export async function claimDueRotations(
  db: Queryable,
  most: number,
  leaseMs: number,
  graceMs: number,
): Promise<DueRotation[]> {
  const rows = await db.query<DueRow>(claimDue, [most, leaseMs, graceMs]);
  return rows.map(({ conversation_id, ...row }) => ({ conversationId: conversation_id, ...row }));
}

/** Who was asked, and who is likely to be at hand: the devices that wrote last, newest first, then the one that made the epoch. */
export async function readAsking(
  db: Queryable,
  { conversationId, epoch }: Pick<DueRotation, 'conversationId' | 'epoch'>,
): Promise<{ readonly asks: DeviceAsked[]; readonly likely: NamedDevice[]; readonly now: Date }> {
  const [asks, likely, [clock]] = await Promise.all([
    db.query<{
      user_id: string;
      device_id: string;
      asked_at: Date;
      asked_until: Date;
      times: number;
      ended: boolean;
    }>(readAsks, [conversationId]),
    db.query<{ user_id: string; device_id: string }>(readLikely, [conversationId, epoch]),
    db.query<{ now: Date }>(readNow, []),
  ]);
  return {
    asks: asks.map((row) => ({
      device: { userId: row.user_id, deviceId: row.device_id },
      askedAt: row.asked_at,
      askedUntil: row.asked_until,
      times: row.times,
      ended: row.ended,
    })),
    likely: likely.map((row) => ({ userId: row.user_id, deviceId: row.device_id })),
    now: clock?.now ?? new Date(),
  };
}

/** Writes what a look decided, unless the rotation was made or somebody else looked meanwhile; then false, and nothing is written. */
export async function saveRotationLook(
  tx: Transaction,
  { conversationId, version }: DueRotation,
  next: { readonly at: Date; readonly waits: number },
): Promise<boolean> {
  return (await tx.query(saveLook, [conversationId, version, next.at, next.waits])).length > 0;
}

/** Nobody will ever be there to be asked. */
export async function stopLooking(db: Queryable, { conversationId, version }: DueRotation): Promise<void> {
  await db.query(endLook, [conversationId, version]);
}

/** Asks a device, and nobody else any more. The look must have been saved in the transaction. */
export async function askDevice(
  tx: Transaction,
  conversationId: string,
  device: NamedDevice,
  at: Date,
  until: Date,
): Promise<void> {
  await tx.query(endAsks, [conversationId]);
  await tx.query(ask, [conversationId, device.userId, device.deviceId, at, until]);
}

/** False when the device is not asked for the rotation of this epoch. */
export async function declineRotationAsked(
  db: Queryable,
  conversationId: string,
  epoch: bigint,
  { userId, deviceId }: NamedDevice,
): Promise<boolean> {
  return (await db.query(decline, [conversationId, epoch, userId, deviceId])).length > 0;
}

/** Makes a look due in the conversations of a user whose rotation is due and where nobody is being asked; how many there were. */
export async function wakeRotationsOf(db: Queryable, userId: string): Promise<number> {
  return (await db.query(wakeOfUser, [userId])).length;
}

export interface RotationStanding {
  readonly epoch: bigint;
  readonly dueSince: Date;
  readonly asked?: { readonly device: NamedDevice; readonly until: Date };
}

/** Since when a rotation is due, and who is being asked now; undefined when none is due. */
export async function rotationStanding(db: Queryable, conversationId: string): Promise<RotationStanding | undefined> {
  const [row] = await db.query<{
    epoch: bigint;
    due_since: Date;
    user_id: string | null;
    device_id: string | null;
    asked_until: Date | null;
  }>(standing, [conversationId]);
  if (!row) return undefined;
  const { user_id: userId, device_id: deviceId, asked_until: until } = row;
  return {
    epoch: row.epoch,
    dueSince: row.due_since,
    ...(userId && deviceId && until && { asked: { device: { userId, deviceId }, until } }),
  };
}

/** Conversations of the user whose rotation is due, the longest due first. */
export async function rotationsDueOf(db: Queryable, userId: string, most: number): Promise<string[]> {
  return (await db.query<{ conversation_id: string }>(dueOfUser, [userId, most])).map((row) => row.conversation_id);
}
