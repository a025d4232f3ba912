import { type Queryable, statement } from '@keytrail/storage';
import type { SessionParts } from '../domain/session-damage.ts';

/** A session as operators see it: that keys are there, never which. Rows may be damaged. */
export interface SeenSession extends SessionParts {
  readonly sessionId: string;
  readonly initiatorUserId: string | null;
  readonly initiatorDeviceId: string | null;
  readonly imported: boolean;
  /** Signed bytes, public to members; null where it is missing. */
  readonly header: Buffer | null;
  readonly envelopesDelivered: number;
  readonly requestsOpen: number;
  readonly writerBuild: string | null;
  readonly traceId: string | null;
  readonly createdAt: Date | null;
  /** Null unless it was taken back; then nothing else of it is known. */
  readonly discardedAt: Date | null;
}

/** Where a page begins: after this session. */
export interface SessionPlace {
  readonly epoch: bigint;
  readonly sessionId: string;
}

const newest: SessionPlace = { epoch: 9_223_372_036_854_775_807n, sessionId: '' };

// Sessions are looked up by the key of their conversation, and counted one by one by the keys of their parts. Nothing here takes it for granted
// that a column is not null: where a constraint was dropped, this is what shows it.
const find = statement(
  'operator_sessions',
  `WITH named AS (
     SELECT session_id, coalesce(epoch, 0) AS place, NULL::timestamptz AS discarded_at FROM sessions
      WHERE conversation_id = $1 AND ($2 = '' OR session_id = $2)
     UNION ALL
     SELECT session_id, 0, discarded_at FROM discarded_sessions WHERE conversation_id = $1 AND ($2 = '' OR session_id = $2)
   ), page AS (
     SELECT * FROM named WHERE place < $3 OR place = $3 AND session_id > $4 ORDER BY place DESC, session_id LIMIT $5
   )
   SELECT p.session_id AS "sessionId", p.place AS epoch, p.discarded_at AS "discardedAt",
     s.initiator_user_id AS "initiatorUserId", s.initiator_device_id AS "initiatorDeviceId", s.kind IS NOT DISTINCT FROM 'IMPORTED' AS imported,
     s.header, s.header IS NOT NULL AND s.header_signature IS NOT NULL AS "headerPresent",
     s.initiator_identity_key IS NOT NULL AS "identityKeyPresent", s.initiator_signing_key IS NOT NULL AS "signingKeyPresent",
     s.initiator_ephemeral_key IS NOT NULL AS "ephemeralKeyPresent", s.key_commitment IS NOT NULL AS "commitmentPresent",
     coalesce(s.envelopes_expected, 0) AS "envelopesExpected", coalesce(s.withholdings_expected, 0) AS "withholdingsExpected",
     e.first AS "envelopesPresent", e.later AS "envelopesDelivered", w.withheld AS "withholdingsPresent",
     coalesce(x.envelopes, 0) AS "envelopesErased", coalesce(x.withholdings, 0) AS "withholdingsErased", k.open AS "requestsOpen",
     s.writer_build AS "writerBuild", s.created_trace_id AS "traceId", s.created_at AS "createdAt"
   FROM page p
   LEFT JOIN sessions s ON s.conversation_id = $1 AND s.session_id = p.session_id AND p.discarded_at IS NULL
   LEFT JOIN erased_parts x ON x.conversation_id = $1 AND x.session_id = p.session_id
   CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE attempt = 0)::integer AS first, count(*) FILTER (WHERE attempt > 0)::integer AS later
     FROM envelopes WHERE conversation_id = $1 AND session_id = p.session_id) e
   CROSS JOIN LATERAL (SELECT count(*)::integer AS withheld FROM withholdings WHERE conversation_id = $1 AND session_id = p.session_id) w
   CROSS JOIN LATERAL (SELECT count(*)::integer AS open FROM key_requests WHERE conversation_id = $1 AND session_id = p.session_id
     AND state IN ('WAITING_FOR_HOLDER', 'OFFERED')) k
   ORDER BY p.place DESC, p.session_id`,
);

/** Sessions of a conversation, newest epoch first, one of them when `sessionId` is not empty; those that were taken back last. */
export function findSeenSessions(
  db: Queryable,
  { conversationId, sessionId }: { readonly conversationId: string; readonly sessionId: string },
  after: SessionPlace | undefined,
  most: number,
): Promise<SeenSession[]> {
  const place = after ?? newest;
  return db.query<SeenSession>(find, [conversationId, sessionId, place.epoch, place.sessionId, most]);
}
