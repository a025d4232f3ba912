import { isCheckViolation, type Queryable, statement, type Transaction } from '@keytrail/storage';

const isErased = statement(
  'erased_users_among',
  'SELECT DISTINCT user_id FROM erasures WHERE user_id = ANY($1::text[]) ORDER BY user_id',
);
const nextOpen = statement(
  'conversation_erasure_next_open_membership',
  'SELECT conversation_id FROM memberships WHERE user_id = $1 AND to_epoch IS NULL ORDER BY conversation_id LIMIT 1',
);
const close = statement(
  'conversation_close',
  `UPDATE conversations SET closed_at = now(), direct_low = NULL, direct_high = NULL, writer_build = $2, last_write_trace_id = $3
   WHERE conversation_id = $1 AND closed_at IS NULL`,
);
const nextEnded = statement(
  'conversation_erasure_next_ended_membership',
  'SELECT conversation_id FROM memberships WHERE user_id = $1 ORDER BY conversation_id LIMIT 1',
);
// By session, as the index of senders is. A message that is blanked names no sender, so that it is not found again.
const blank = statement(
  'conversation_erasure_blank_messages',
  `WITH found AS (
     SELECT m.conversation_id, m.sequence FROM epochs e
     JOIN messages m ON m.conversation_id = e.conversation_id AND m.session_id = e.session_id AND m.sender_user_id = $2
     WHERE e.conversation_id = $1 LIMIT $3),
   blanked AS (
     UPDATE messages m SET erased_at = now(), ciphertext = '', signature = '', sender_user_id = '',
       sender_device_id = m.sequence::text, sender_counter = 0
     FROM found f WHERE m.conversation_id = f.conversation_id AND m.sequence = f.sequence RETURNING 1)
   SELECT count(*)::integer AS erased FROM blanked`,
);
const forgetMemberships = statement(
  'conversation_erasure_forget_memberships',
  `WITH gone AS (DELETE FROM memberships WHERE conversation_id = $1 AND user_id = $2 RETURNING 1)
   SELECT count(*)::integer AS erased FROM gone`,
);
// The reconciler needs the row, to discard what it stands for, and nobody needs to know whose it was.
const blankCandidates = statement(
  'conversation_erasure_blank_candidates',
  `WITH blanked AS (UPDATE candidates SET caller_user_id = '' WHERE caller_user_id = $1 RETURNING 1)
   SELECT count(*)::integer AS erased FROM blanked`,
);
const deleteAsks = statement(
  'conversation_erasure_delete_rotation_asks',
  `WITH gone AS (DELETE FROM rotation_asks WHERE user_id = $1 RETURNING 1)
   SELECT count(*)::integer AS erased FROM gone`,
);
const deleteRequestIds = statement(
  'conversation_erasure_delete_request_ids',
  `WITH gone AS (DELETE FROM request_ids WHERE (caller, request_id) IN (
     SELECT caller, request_id FROM request_ids WHERE caller = $1 LIMIT $2) RETURNING 1)
   SELECT count(*)::integer AS erased FROM gone`,
);
// By conversation: epochs have no index by who made them.
const countEpochs = statement(
  'conversation_erasure_count_epochs',
  'SELECT count(*)::integer AS kept FROM epochs WHERE conversation_id = $1 AND initiator_user_id = $2',
);
// An id stands in signed bytes after its length.
const countRosterEntries = statement(
  'conversation_erasure_count_roster_entries',
  `SELECT count(*)::integer AS kept FROM roster_log
   WHERE conversation_id = $1 AND (erased_user_id = $2 OR position($3::bytea IN coalesce(change, base, '')) > 0)`,
);
const countRevoked = statement(
  'conversation_erasure_count_revoked_devices',
  'SELECT count(*)::integer AS kept FROM revoked_devices WHERE user_id = $1',
);
const forgetRevoked = statement(
  'conversation_erasure_forget_revoked_devices',
  'DELETE FROM revoked_devices WHERE user_id = ANY($1::text[])',
);

/** Those of the users of whom nothing is written any more. */
export async function erasedAmong(db: Queryable, userIds: readonly string[]): Promise<string[]> {
  return (await db.query<{ user_id: string }>(isErased, [userIds])).map((row) => row.user_id);
}

/** The database refused to make an erased user a member. */
export function isOfErasedUser(error: unknown): boolean {
  return isCheckViolation(error, 'not_of_erased_users');
}

/** A conversation that the user is a member of now. */
export async function nextConversationToLeave(tx: Transaction, userId: string): Promise<string | undefined> {
  return (await tx.query<{ conversation_id: string }>(nextOpen, [userId]))[0]?.conversation_id;
}

/** Closes a DIRECT conversation for good; a user of it must be erased. */
export async function closeConversation(
  tx: Transaction,
  conversationId: string,
  by: { readonly build: string; readonly traceId: string },
): Promise<void> {
  await tx.query(close, [conversationId, by.build, by.traceId]);
}

/** A conversation that the user was ever a member of. */
export async function nextConversationToForget(tx: Transaction, userId: string): Promise<string | undefined> {
  return (await tx.query<{ conversation_id: string }>(nextEnded, [userId]))[0]?.conversation_id;
}

/** Takes content and sender out of messages that the user sent; their places in the log stay. */
export function blankMessages(tx: Transaction, conversationId: string, userId: string, most: number): Promise<number> {
  return erasedBy(tx, blank, [conversationId, userId, most]);
}

/** The memberships must have ended. */
export function deleteMemberships(tx: Transaction, conversationId: string, userId: string): Promise<number> {
  return erasedBy(tx, forgetMemberships, [conversationId, userId]);
}

export function blankCandidatesOf(tx: Transaction, userId: string): Promise<number> {
  return erasedBy(tx, blankCandidates, [userId]);
}

/** Rotations that the user's devices were asked for: of conversations that are due now, so that they are few. */
export function deleteRotationAsksOf(tx: Transaction, userId: string): Promise<number> {
  return erasedBy(tx, deleteAsks, [userId]);
}

export function deleteRequestIdsOf(tx: Transaction, userId: string, most: number): Promise<number> {
  return erasedBy(tx, deleteRequestIds, [userId, most]);
}

/** How many epochs of a conversation the user made: they stay. */
export function countEpochsOf(tx: Transaction, conversationId: string, userId: string): Promise<number> {
  return keptBy(tx, countEpochs, [conversationId, userId]);
}

/** How many entries of a roster's log name the user: they stay, as members verify the roster by them. */
export function countRosterEntriesOf(tx: Transaction, conversationId: string, userId: string): Promise<number> {
  const id = Buffer.from(userId);
  const named = Buffer.concat([Buffer.from(id.length < 128 ? [id.length] : [0x80, 1]), id]);
  return keptBy(tx, countRosterEntries, [conversationId, userId, named]);
}

export function countRevokedDevices(tx: Transaction, userId: string): Promise<number> {
  return keptBy(tx, countRevoked, [userId]);
}

export async function forgetRevokedDevices(tx: Transaction, userIds: readonly string[]): Promise<void> {
  await tx.query(forgetRevoked, [userIds]);
}

async function erasedBy(tx: Transaction, of: typeof blank, values: readonly unknown[]): Promise<number> {
  return (await tx.query<{ erased: number }>(of, values))[0]?.erased ?? 0;
}

async function keptBy(tx: Transaction, of: typeof countEpochs, values: readonly unknown[]): Promise<number> {
  return (await tx.query<{ kept: number }>(of, values))[0]?.kept ?? 0;
}
