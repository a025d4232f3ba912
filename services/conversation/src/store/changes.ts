import type { RotationDueReason } from '@keytrail/contracts';
import { type ChangePage, type Queryable, statement } from '@keytrail/storage';

/** Where a conversation stands that changed. */
export interface Change {
  readonly conversationId: string;
  readonly changedXid: bigint;
  readonly epoch: bigint;
  readonly sessionId: string;
  readonly rosterVersion: bigint;
  readonly lastSequence: bigint;
  readonly rotationDue: RotationDueReason;
  /** The user is not a member any more: all of it is of the end of the membership. */
  readonly left: boolean;
}

// A message writes the conversation's row and nothing else for this: whose conversations they are is known from the memberships. A membership
// that ended is told by its own row, which never changes again, so that nothing of later comes through it.
const changed = `
  WITH mine AS (
    SELECT DISTINCT ON (conversation_id) conversation_id, from_epoch, to_epoch, to_roster_version, to_sequence, changed_xid
    FROM memberships WHERE user_id = $1 ORDER BY conversation_id, from_roster_version DESC),
  changed AS (
    SELECT c.conversation_id, c.changed_xid, c.epoch, c.session_id, c.roster_version, c.last_sequence, c.rotation_due, false AS gone
    FROM mine m JOIN conversations c USING (conversation_id) WHERE m.to_epoch IS NULL
    UNION ALL
    SELECT m.conversation_id, m.changed_xid, m.to_epoch, coalesce(e.session_id, ''), m.to_roster_version, coalesce(m.to_sequence, 0), 0, true
    FROM mine m LEFT JOIN epochs e
      ON e.conversation_id = m.conversation_id AND e.epoch = m.to_epoch AND m.to_epoch >= m.from_epoch
    WHERE m.to_epoch IS NOT NULL AND $2)
  SELECT conversation_id, changed_xid::text AS changed_xid, epoch, session_id, roster_version, last_sequence, rotation_due, gone FROM changed
  WHERE (changed_xid, conversation_id::text COLLATE "C") > ($3::text::xid8, $4) AND changed_xid < $5::text::xid8`;

const page = statement(
  'conversation_changes_page',
  `${changed} ORDER BY changed.changed_xid, conversation_id::text COLLATE "C" LIMIT $6`,
);

/** Up to `most` changes of a user's conversations, in the order of their cursor. */
export async function readChanges(db: Queryable, userId: string, asked: ChangePage, most: number): Promise<Change[]> {
  const { anew, after, before } = asked;
  const rows = await db.query<{
    conversation_id: string;
    changed_xid: string;
    epoch: bigint;
    session_id: string;
    roster_version: bigint;
    last_sequence: bigint;
    rotation_due: RotationDueReason;
    gone: boolean;
  }>(page, [userId, !anew, String(after.xid), after.key, String(before), most]);
  return rows.map((row) => ({
    conversationId: row.conversation_id,
    changedXid: BigInt(row.changed_xid),
    epoch: row.epoch,
    sessionId: row.session_id,
    rosterVersion: row.roster_version,
    lastSequence: row.last_sequence,
    rotationDue: row.rotation_due,
    left: row.gone,
  }));
}
