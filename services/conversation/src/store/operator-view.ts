import { type Queryable, statement } from '@keytrail/storage';

/** A conversation as its row says, also where other rows of it are missing. */
export interface SeenConversation {
  readonly kind: number;
  readonly epoch: bigint;
  /** Whether the current epoch has its row. */
  readonly epochThere: boolean;
  readonly sessionId: string;
  readonly rosterVersion: bigint;
  readonly historyPolicy: number;
  /** 0 when none is due. */
  readonly rotationDue: number;
  readonly rotationDueSince: Date | undefined;
  /** Of the write that made it due; empty when none is, or when unknown. */
  readonly rotationDueWriterBuild: string;
  readonly rotationDueTraceId: string;
  readonly messages: bigint;
  /** Of the build that created it; of the one that wrote it last, where its first epoch is gone. */
  readonly writerBuild: string;
  readonly traceId: string;
  readonly createdAt: Date;
  readonly closedAt: Date | undefined;
}

export interface SeenMembership {
  readonly userId: string;
  readonly role: number;
  readonly fromEpoch: bigint;
  readonly toEpoch: bigint | undefined;
  /** Undefined for those who were there before rosters had logs. */
  readonly joinedAt: Date | undefined;
  readonly leftAt: Date | undefined;
  /** Empty when unknown. */
  readonly writerBuild: string;
  readonly traceId: string;
  /** Of its end; empty while it lasts, too. */
  readonly leftWriterBuild: string;
  readonly leftTraceId: string;
}

export interface SeenEpoch {
  readonly epoch: bigint;
  readonly sessionId: string;
  readonly rosterVersion: bigint;
  readonly historyPolicy: number;
  readonly envelopesExpected: number;
  readonly initiatorUserId: string;
  readonly initiatorDeviceId: string;
  readonly committedAt: Date;
  readonly writerBuild: string;
  readonly traceId: string;
}

export interface SeenStanding {
  readonly standing: 'committed' | 'candidate' | 'aborted' | 'lost';
  /** Of a committed one. */
  readonly epoch: bigint | undefined;
  readonly decidedAt: Date | undefined;
  /** Of a candidate. */
  readonly beganAt: Date | undefined;
  readonly writerBuild: string;
  readonly traceId: string;
}

const conversation = statement(
  'operator_conversation',
  `SELECT c.kind, c.epoch, e.epoch IS NOT NULL AS "epochThere", c.session_id AS "sessionId", c.roster_version AS "rosterVersion",
     c.history_policy AS "historyPolicy", c.rotation_due AS "rotationDue", d.due_since AS "rotationDueSince",
     coalesce(d.due_writer_build, '') AS "rotationDueWriterBuild", coalesce(d.due_trace_id, '') AS "rotationDueTraceId",
     c.last_sequence AS messages, coalesce(f.writer_build, c.writer_build) AS "writerBuild", c.created_trace_id AS "traceId",
     c.created_at AS "createdAt", c.closed_at AS "closedAt"
   FROM conversations c
   LEFT JOIN epochs e ON e.conversation_id = c.conversation_id AND e.epoch = c.epoch AND e.session_id = c.session_id
   LEFT JOIN epochs f ON f.conversation_id = c.conversation_id AND f.epoch = 1
   LEFT JOIN rotations_due d ON d.conversation_id = c.conversation_id
   WHERE c.conversation_id = $1`,
);

// The log's entry of a version says when, by which build and in which trace the roster came to it; a base entry says nothing of that.
const memberships = statement(
  'operator_memberships',
  `SELECT m.user_id AS "userId", m.role, m.from_epoch AS "fromEpoch", m.to_epoch AS "toEpoch", j.recorded_at AS "joinedAt",
     l.recorded_at AS "leftAt", coalesce(j.writer_build, '') AS "writerBuild", coalesce(j.trace_id, '') AS "traceId",
     coalesce(l.writer_build, '') AS "leftWriterBuild", coalesce(l.trace_id, '') AS "leftTraceId"
   FROM memberships m
   LEFT JOIN roster_log j ON j.conversation_id = m.conversation_id AND j.roster_version = m.from_roster_version AND j.base IS NULL
   LEFT JOIN roster_log l ON l.conversation_id = m.conversation_id AND l.roster_version = m.to_roster_version AND l.base IS NULL
   WHERE m.conversation_id = $1 AND ($2 = '' OR m.user_id = $2)
   ORDER BY m.from_roster_version, m.user_id LIMIT $3`,
);

const epochs = statement(
  'operator_epochs',
  `SELECT epoch, session_id AS "sessionId", roster_version AS "rosterVersion", history_policy AS "historyPolicy",
     envelopes_expected AS "envelopesExpected", initiator_user_id AS "initiatorUserId", initiator_device_id AS "initiatorDeviceId",
     committed_at AS "committedAt", writer_build AS "writerBuild", trace_id AS "traceId"
   FROM epochs WHERE conversation_id = $1 ORDER BY epoch DESC LIMIT $2`,
);

// From one row to the next, the epochs between them; and those above the newest row, which the conversation says were.
const gaps = statement(
  'operator_epoch_gaps',
  `SELECT g.epoch FROM conversations c
   CROSS JOIN LATERAL (
     SELECT e.epoch + 1 AS first, coalesce(lead(e.epoch) OVER (ORDER BY e.epoch), c.epoch + 1) - 1 AS last
     FROM (SELECT epoch FROM epochs WHERE conversation_id = c.conversation_id UNION ALL SELECT 0) e) holes
   CROSS JOIN LATERAL generate_series(least(holes.last, c.epoch), greatest(holes.first, least(holes.last, c.epoch) - $2 + 1), -1) AS g (epoch)
   WHERE c.conversation_id = $1 AND holes.first <= least(holes.last, c.epoch)
   ORDER BY g.epoch DESC LIMIT $2`,
);

const standing = statement(
  'operator_session_standing',
  `SELECT CASE WHEN e.epoch IS NOT NULL THEN 'committed' WHEN d.outcome = 'ABORTED' THEN 'aborted'
       WHEN d.outcome = 'COMMITTED' THEN 'lost' ELSE 'candidate' END AS standing,
     e.epoch, coalesce(e.committed_at, d.decided_at) AS "decidedAt",
     CASE WHEN e.epoch IS NULL AND d.outcome IS NULL THEN k.started_at END AS "beganAt",
     coalesce(e.writer_build, d.writer_build, k.writer_build) AS "writerBuild", coalesce(e.trace_id, d.trace_id, k.trace_id) AS "traceId"
   FROM (VALUES ($1::uuid, $2::text)) AS asked (conversation_id, session_id)
   LEFT JOIN epochs e USING (conversation_id, session_id)
   LEFT JOIN session_decisions d USING (conversation_id, session_id)
   LEFT JOIN candidates k USING (conversation_id, session_id)
   WHERE e.epoch IS NOT NULL OR d.outcome IS NOT NULL OR k.started_at IS NOT NULL`,
);

type Nullable<T> = { [K in keyof T]: undefined extends T[K] ? Exclude<T[K], undefined> | null : T[K] };

export async function readSeenConversation(
  db: Queryable,
  conversationId: string,
): Promise<SeenConversation | undefined> {
  const [row] = await db.query<Nullable<SeenConversation>>(conversation, [conversationId]);
  return row && withoutNull(row);
}

/** Of one user, or with '' of all: oldest first. */
export async function listSeenMemberships(
  db: Queryable,
  conversationId: string,
  userId: string,
  most: number,
): Promise<SeenMembership[]> {
  return (await db.query<Nullable<SeenMembership>>(memberships, [conversationId, userId, most])).map(withoutNull);
}

/** Newest first. */
export function listSeenEpochs(db: Queryable, conversationId: string, most: number): Promise<SeenEpoch[]> {
  return db.query<SeenEpoch>(epochs, [conversationId, most]);
}

/** Epochs up to the current one that have no row, newest first. */
export async function listEpochGaps(db: Queryable, conversationId: string, most: number): Promise<bigint[]> {
  return (await db.query<{ epoch: bigint }>(gaps, [conversationId, most])).map(({ epoch }) => epoch);
}

/** What became of a session; undefined when nothing is known of it. */
export async function readSeenStanding(
  db: Queryable,
  conversationId: string,
  sessionId: string,
): Promise<SeenStanding | undefined> {
  const [row] = await db.query<Nullable<SeenStanding>>(standing, [conversationId, sessionId]);
  return row && withoutNull(row);
}

function withoutNull<T extends object>(row: Nullable<T>): T {
  return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, value ?? undefined])) as T;
}
