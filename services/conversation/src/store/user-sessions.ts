import { type Queryable, statement } from '@keytrail/storage';
import type { MembershipSpan } from '../domain/entitlement.ts';

/** A conversation that a user is or was a member of. */
export interface UserConversation {
  readonly conversationId: string;
  readonly epoch: bigint;
  readonly spans: readonly MembershipSpan[];
}

/** The place of a session in the list of a user: the newest first. */
export interface SessionPlaceInList {
  /** Microseconds since 1970. */
  readonly committedAtUs: bigint;
  readonly conversationId: string;
  readonly epoch: bigint;
}

export interface UserSession extends SessionPlaceInList {
  readonly sessionId: string;
  /** 32 bytes, SHA-256. */
  readonly headerHash: Uint8Array;
  readonly current: boolean;
}

const conversationsOf = statement(
  'user_conversations',
  `SELECT m.conversation_id, c.epoch,
     array_agg(m.from_epoch ORDER BY m.from_roster_version) AS first, array_agg(m.to_epoch ORDER BY m.from_roster_version) AS last
   FROM memberships m JOIN conversations c USING (conversation_id)
   WHERE m.user_id = $1 AND ($2::uuid IS NULL OR m.conversation_id = $2)
   GROUP BY 1, 2`,
);

// Epochs of no range are not read: each is found by the key of its conversation.
const sessionsOf = statement(
  'user_sessions_page',
  `SELECT conversation_id, epoch, session_id, header_hash, committed_at_us, current FROM (
     SELECT e.conversation_id, e.epoch, e.session_id, e.header_hash, e.epoch = r.current AS current,
       (extract(epoch FROM e.committed_at) * 1000000)::bigint AS committed_at_us
     FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[]) AS r (conversation_id, first, last, current)
     JOIN epochs e ON e.conversation_id = r.conversation_id AND e.epoch >= r.first AND e.epoch <= r.last) AS entitled
   WHERE $5::bigint IS NULL OR (committed_at_us, conversation_id, epoch) < ($5, $6::uuid, $7::bigint)
   ORDER BY committed_at_us DESC, conversation_id DESC, epoch DESC LIMIT $8`,
);

/** All that the user is or was a member of, or the one that is named. */
export async function conversationsEverOf(
  db: Queryable,
  userId: string,
  conversationId?: string,
): Promise<UserConversation[]> {
  const rows = await db.query<{
    conversation_id: string;
    epoch: bigint;
    first: bigint[];
    last: (bigint | null)[];
  }>(conversationsOf, [userId, conversationId ?? null]);
  return rows.map((row) => ({
    conversationId: row.conversation_id,
    epoch: row.epoch,
    spans: row.first.map((fromEpoch, index) => ({ fromEpoch, toEpoch: row.last[index] ?? undefined })),
  }));
}

/** Epochs of a conversation from `first` to `last`. */
export interface EpochsOfConversation {
  readonly conversationId: string;
  readonly first: bigint;
  readonly last: bigint;
  /** The present epoch; 0 for who left. */
  readonly current: bigint;
}

/** Up to `limit` committed sessions of the ranges, which do not overlap, the newest first, after a place. */
export async function readSessions(
  db: Queryable,
  ranges: readonly EpochsOfConversation[],
  after: SessionPlaceInList | undefined,
  limit: number,
): Promise<UserSession[]> {
  const rows = await db.query<{
    conversation_id: string;
    epoch: bigint;
    session_id: string;
    header_hash: Buffer;
    committed_at_us: bigint;
    current: boolean;
  }>(sessionsOf, [
    ranges.map(({ conversationId }) => conversationId),
    ranges.map(({ first }) => first),
    ranges.map(({ last }) => last),
    ranges.map(({ current }) => current),
    after?.committedAtUs ?? null,
    after?.conversationId ?? null,
    after?.epoch ?? null,
    limit,
  ]);
  return rows.map((row) => ({
    conversationId: row.conversation_id,
    epoch: row.epoch,
    sessionId: row.session_id,
    headerHash: row.header_hash,
    committedAtUs: row.committed_at_us,
    current: row.current,
  }));
}
