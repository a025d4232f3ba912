import type { HistoryPolicy } from '@keytrail/contracts';
import { type Queryable, statement } from '@keytrail/storage';
import type { MembershipSpan } from '../domain/entitlement.ts';

const findWithSessions = statement(
  'conversations_find_with_sessions',
  `SELECT a.place::integer, c.epoch, c.session_id, coalesce(e.history_policy, c.history_policy) AS history_policy, c.last_write_trace_id, e.epoch AS asked_epoch
   FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS a (conversation_id, session_id, place)
   JOIN conversations c USING (conversation_id)
   LEFT JOIN epochs e ON e.conversation_id = a.conversation_id AND e.session_id = a.session_id`,
);

// One look by key for each pair, whatever the planner thinks of the arrays.
const spansOfMany = statement(
  'memberships_of_many',
  `SELECT a.place::integer, m.user_id, m.from_epoch, m.to_epoch
   FROM unnest($1::integer[], $2::uuid[], $3::text[]) AS a (place, conversation_id, user_id)
   CROSS JOIN LATERAL (SELECT user_id, from_epoch, to_epoch, from_roster_version FROM memberships
     WHERE conversation_id = a.conversation_id AND user_id = a.user_id) m
   ORDER BY a.place, m.user_id, m.from_roster_version`,
);

/** A conversation as other services ask for it, with the epoch of one of its sessions. */
export interface ConversationWithSession {
  readonly epoch: bigint;
  readonly sessionId: string;
  /** Of the epoch of the session asked for; where that is not committed, of the conversation. */
  readonly historyPolicy: HistoryPolicy;
  readonly lastWriteTraceId: string;
  /** Undefined when the session asked for is not committed. */
  readonly askedEpoch?: bigint | undefined;
}

export interface AskedEntitlement {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly userIds: readonly string[];
}

export interface EntitlementRows {
  readonly conversation: ConversationWithSession | undefined;
  /** Oldest first; none of a stranger. */
  readonly spansOf: (userId: string) => readonly MembershipSpan[];
}

/** What decides about each of the questions, in their order: two statements, however many there are. */
export async function readEntitlements(
  db: Queryable,
  asked: readonly AskedEntitlement[],
): Promise<readonly EntitlementRows[]> {
  const found = await db.query<{
    place: number;
    epoch: bigint;
    session_id: string;
    history_policy: HistoryPolicy;
    last_write_trace_id: string;
    asked_epoch: bigint | null;
  }>(findWithSessions, [asked.map(({ conversationId }) => conversationId), asked.map(({ sessionId }) => sessionId)]);
  const pairs = asked.flatMap(({ conversationId, userIds }, place) =>
    userIds.map((userId) => ({ place, conversationId, userId })),
  );
  // Read later: a membership may be newer than the session, never the other way round.
  const memberships = await db.query<{ place: number; user_id: string; from_epoch: bigint; to_epoch: bigint | null }>(
    spansOfMany,
    [
      pairs.map(({ place }) => place),
      pairs.map(({ conversationId }) => conversationId),
      pairs.map(({ userId }) => userId),
    ],
  );
  const conversations = new Map(found.map((row) => [row.place - 1, row]));
  const spans = Map.groupBy(memberships, ({ place, user_id }) => `${place} ${user_id}`);
  return asked.map((_, place) => {
    const row = conversations.get(place);
    return {
      conversation: row && {
        epoch: row.epoch,
        sessionId: row.session_id,
        historyPolicy: row.history_policy,
        lastWriteTraceId: row.last_write_trace_id,
        askedEpoch: row.asked_epoch ?? undefined,
      },
      spansOf: (userId) =>
        (spans.get(`${place} ${userId}`) ?? []).map((span) => ({
          fromEpoch: span.from_epoch,
          toEpoch: span.to_epoch ?? undefined,
        })),
    };
  });
}
