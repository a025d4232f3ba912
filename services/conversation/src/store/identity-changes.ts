import type { RotationDueReason } from '@keytrail/contracts';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { Writer } from './conversations.ts';

/** A user whose conversations and peers are still to be reached. */
export interface IdentityChange {
  readonly userId: string;
  /** True while conversations are being marked; peers are told afterwards. */
  readonly marks: boolean;
  readonly markedTo: string | undefined;
  readonly toldTo: string;
  readonly traceparent: string;
}

/** A conversation where a rotation became due, and who is in it. */
export interface MarkedConversation {
  readonly conversationId: string;
  readonly epoch: bigint;
  readonly sessionId: string;
  readonly rosterVersion: bigint;
  readonly rotationDue: RotationDueReason;
  readonly memberIds: readonly string[];
}

const lockNext = statement(
  'identity_change_lock_next',
  `SELECT user_id, marks, marked_to, told_to, traceparent FROM identity_changes
   ORDER BY changed_at, user_id LIMIT 1 FOR UPDATE SKIP LOCKED`,
);

const conversationPage = statement(
  'identity_change_conversations',
  `SELECT conversation_id FROM memberships
   WHERE user_id = $1 AND to_epoch IS NULL AND ($2::uuid IS NULL OR conversation_id > $2)
   ORDER BY conversation_id LIMIT $3`,
);

// 2 is MEMBER_REMOVED, which refuses the same messages and outweighs; 4 stands already. A closed one is not rotated any more.
const mark = statement(
  'conversations_mark_device_revoked',
  `WITH due AS (
     SELECT conversation_id FROM conversations WHERE conversation_id = ANY($1::uuid[]) AND rotation_due NOT IN (2, 4)
       AND closed_at IS NULL
     ORDER BY conversation_id FOR NO KEY UPDATE)
   UPDATE conversations c SET rotation_due = 4, min_send_epoch = c.epoch + 1, writer_build = $2, last_write_trace_id = $3
   FROM due WHERE c.conversation_id = due.conversation_id
   RETURNING c.conversation_id, c.epoch, c.session_id, c.roster_version, c.rotation_due,
     ARRAY(SELECT m.user_id FROM memberships m WHERE m.conversation_id = c.conversation_id AND m.to_epoch IS NULL) AS member_ids`,
);

// Where one was due already as well: a device that is asked for it may be the revoked one, and a look that began before has not heard of it.
const lookAgain = statement(
  'rotations_look_again',
  `UPDATE rotations_due SET next_attempt_at = now(), version = version + 1
   WHERE conversation_id IN (SELECT conversation_id FROM rotations_due WHERE conversation_id = ANY($1::uuid[]) ORDER BY 1 FOR UPDATE)`,
);

const marksMoved = statement(
  'identity_change_marks_moved',
  'UPDATE identity_changes SET marks = $2, marked_to = $3 WHERE user_id = $1',
);

const peerPage = statement(
  'identity_change_peers',
  `SELECT DISTINCT theirs.user_id
   FROM memberships mine JOIN memberships theirs ON theirs.conversation_id = mine.conversation_id
   WHERE mine.user_id = $1 AND mine.to_epoch IS NULL AND theirs.to_epoch IS NULL
     AND theirs.user_id <> $1 AND theirs.user_id > $2
   ORDER BY 1 LIMIT $3`,
);

const toldMoved = statement(
  'identity_change_told_moved',
  'UPDATE identity_changes SET told_to = $2 WHERE user_id = $1',
);

const finish = statement('identity_change_finish', 'DELETE FROM identity_changes WHERE user_id = $1');

const putOff = statement(
  'identity_change_put_off',
  'UPDATE identity_changes SET changed_at = now() WHERE user_id = $1',
);

/** The oldest change that nobody else is at, locked until the transaction ends; undefined when there is none. */
export async function lockNextChange(tx: Transaction): Promise<IdentityChange | undefined> {
  const [row] = await tx.query<{
    user_id: string;
    marks: boolean;
    marked_to: string | null;
    told_to: string;
    traceparent: string;
  }>(lockNext, []);
  return (
    row && {
      userId: row.user_id,
      marks: row.marks,
      markedTo: row.marked_to ?? undefined,
      toldTo: row.told_to,
      traceparent: row.traceparent,
    }
  );
}

/** All others come before it now. */
export async function putOffChange(db: Queryable, userId: string): Promise<void> {
  await db.query(putOff, [userId]);
}

/** Makes a rotation due in the user's next conversations, at most `most`, and moves on. Those where one is due for as much are left as they are. */
export async function markNextConversations(
  tx: Transaction,
  { userId, markedTo }: IdentityChange,
  most: number,
  by: Writer,
): Promise<MarkedConversation[]> {
  const page = await tx.query<{ conversation_id: string }>(conversationPage, [userId, markedTo ?? null, most]);
  const ids = page.map((row) => row.conversation_id);
  const last = ids.length < most ? undefined : ids.at(-1);
  await tx.query(marksMoved, [userId, last !== undefined, last ?? null]);
  const marked = await tx.query<{
    conversation_id: string;
    epoch: bigint;
    session_id: string;
    roster_version: bigint;
    rotation_due: RotationDueReason;
    member_ids: string[];
  }>(mark, [ids, by.build, by.traceId]);
  await tx.query(lookAgain, [ids]);
  return marked.map((row) => ({
    conversationId: row.conversation_id,
    epoch: row.epoch,
    sessionId: row.session_id,
    rosterVersion: row.roster_version,
    rotationDue: row.rotation_due,
    memberIds: row.member_ids,
  }));
}

/** The next of those who share a conversation with the user, at most `most`, each once however many they share; the change ends with the last. */
export async function nextPeersToTell(
  tx: Transaction,
  { userId, toldTo }: IdentityChange,
  most: number,
): Promise<string[]> {
  const page = await tx.query<{ user_id: string }>(peerPage, [userId, toldTo, most]);
  const peers = page.map((row) => row.user_id);
  const last = peers.at(-1);
  if (peers.length < most || last === undefined) await tx.query(finish, [userId]);
  else await tx.query(toldMoved, [userId, last]);
  return peers;
}
