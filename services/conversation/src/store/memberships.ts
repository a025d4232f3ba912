import type { MemberRole } from '@keytrail/contracts';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { MembershipSpan } from '../domain/entitlement.ts';

const spansOf = statement(
  'memberships_of_users',
  `SELECT user_id, role, from_epoch, to_epoch FROM memberships
   WHERE conversation_id = $1 AND user_id = ANY($2::text[]) ORDER BY user_id, from_roster_version`,
);

const open = statement(
  'memberships_open',
  `INSERT INTO memberships (conversation_id, user_id, role, from_epoch, from_roster_version)
   SELECT $1, user_id, role, from_epoch, $2
   FROM unnest($3::text[], $4::smallint[], $5::bigint[]) AS added (user_id, role, from_epoch)
   RETURNING true AS opened`,
);

const close = statement(
  'memberships_close',
  `UPDATE memberships SET to_epoch = $2, to_roster_version = $3
   WHERE conversation_id = $1 AND user_id = ANY($4::text[]) AND to_epoch IS NULL
   RETURNING true AS closed`,
);

const changeRole = statement(
  'membership_change_role',
  'UPDATE memberships SET role = $3 WHERE conversation_id = $1 AND user_id = $2 AND to_epoch IS NULL',
);

const sharing = statement(
  'users_sharing_a_conversation',
  `SELECT DISTINCT theirs.user_id
   FROM memberships mine JOIN memberships theirs ON theirs.conversation_id = mine.conversation_id
   WHERE mine.user_id = $1 AND mine.to_epoch IS NULL
     AND theirs.user_id = ANY($2::text[]) AND ($3 OR theirs.to_epoch IS NULL)
   ORDER BY 1`,
);

/** The memberships that a user has had in a conversation, oldest first. */
export interface UserMemberships {
  readonly spans: readonly MembershipSpan[];
  /** The role now; absent for those who are no members. */
  readonly role?: MemberRole | undefined;
}

const none: UserMemberships = { spans: [] };

export async function membershipsOf(
  db: Queryable,
  conversationId: string,
  userIds: readonly string[],
): Promise<(userId: string) => UserMemberships> {
  const rows = await db.query<{ user_id: string; role: MemberRole; from_epoch: bigint; to_epoch: bigint | null }>(
    spansOf,
    [conversationId, userIds],
  );
  const byUser = new Map<string, { spans: MembershipSpan[]; role?: MemberRole }>();
  for (const row of rows) {
    const known = byUser.get(row.user_id) ?? { spans: [] };
    known.spans.push({ fromEpoch: row.from_epoch, toEpoch: row.to_epoch ?? undefined });
    if (row.to_epoch === null) known.role = row.role;
    byUser.set(row.user_id, known);
  }
  return (userId) => byUser.get(userId) ?? none;
}

export interface OpenedMembership {
  readonly userId: string;
  readonly role: MemberRole;
  readonly fromEpoch: bigint;
}

export async function openMemberships(
  tx: Transaction,
  conversationId: string,
  rosterVersion: bigint,
  opened: readonly OpenedMembership[],
): Promise<void> {
  await tx.query(open, [
    conversationId,
    rosterVersion,
    opened.map(({ userId }) => userId),
    opened.map(({ role }) => role),
    opened.map(({ fromEpoch }) => fromEpoch),
  ]);
}

/** Ends the memberships of users with an epoch, which is their last. */
export async function closeMemberships(
  tx: Transaction,
  conversationId: string,
  lastEpoch: bigint,
  rosterVersion: bigint,
  userIds: readonly string[],
): Promise<void> {
  await tx.query(close, [conversationId, lastEpoch, rosterVersion, userIds]);
}

export async function setRole(
  tx: Transaction,
  conversationId: string,
  userId: string,
  role: MemberRole,
): Promise<void> {
  await tx.query(changeRole, [conversationId, userId, role]);
}

/** Those of the other users who are members of a conversation that the user is a member of now, or have been and left. */
export async function usersSharingWith(
  db: Queryable,
  userId: string,
  { others, includeFormer }: { readonly others: readonly string[]; readonly includeFormer: boolean },
): Promise<string[]> {
  const rows = await db.query<{ user_id: string }>(sharing, [userId, others, includeFormer]);
  return rows.map((row) => row.user_id);
}
