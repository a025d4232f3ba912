import { type Queryable, statement } from '@keytrail/storage';
import { type DeviceId, deviceOfKey } from '../domain/device.ts';
import type { EnvelopeFacts, KeyFacts, SessionRowFacts } from '../domain/key-facts.ts';

interface SessionName {
  readonly conversationId: string;
  readonly sessionId: string;
}

interface SessionRow {
  kind: string;
  epoch: bigint;
  initiator_user_id: string;
  initiator_device_id: string;
  has_header: boolean;
  has_ephemeral_key: boolean;
  has_identity_key: boolean;
  envelopes_expected: number;
  envelopes_present: number;
  envelopes_erased: number;
  withheld_reason: string | null;
  writer_build: string;
  writer_schema: string | null;
  created_trace_id: string;
  created_at: Date;
}

const readRow = statement(
  'read_session_to_explain',
  `SELECT s.kind, s.epoch, s.initiator_user_id, s.initiator_device_id, s.header IS NOT NULL AS has_header,
     s.initiator_ephemeral_key IS NOT NULL AS has_ephemeral_key, s.initiator_identity_key IS NOT NULL AS has_identity_key, s.envelopes_expected,
     (SELECT count(*)::integer FROM envelopes e
       WHERE e.conversation_id = s.conversation_id AND e.session_id = s.session_id AND e.attempt = 0) AS envelopes_present,
     coalesce(p.envelopes, 0) AS envelopes_erased, w.reason AS withheld_reason, s.writer_build, s.writer_schema, s.created_trace_id, s.created_at
   FROM sessions s
   LEFT JOIN erased_parts p USING (conversation_id, session_id)
   LEFT JOIN withholdings w
     ON w.conversation_id = s.conversation_id AND w.session_id = s.session_id AND w.user_id = $3 AND w.device_id = $4
   WHERE s.conversation_id = $1 AND s.session_id = $2`,
);

const readEnvelopes = statement(
  'read_envelopes_to_explain',
  `SELECT attempt, key_request_id, sealer_user_id, sealer_device_id, written_at, opened_at, rejected_at, rejected_because FROM (
     SELECT * FROM envelopes WHERE conversation_id = $1 AND session_id = $2 AND user_id = $3 AND device_id = $4
     ORDER BY attempt DESC LIMIT 100) newest ORDER BY attempt`,
);

// Those that a build wrote in one conversation are few; all that it wrote has no index.
const readWriters = statement(
  'read_writers_to_explain',
  `SELECT writer_build AS build, min(created_at) AS first_at, max(created_at) AS last_at FROM sessions
   WHERE conversation_id = $1 AND kind = 'NATIVE' GROUP BY writer_build ORDER BY first_at LIMIT 50`,
);

const readMigrations = statement(
  'read_migrations_to_explain',
  `SELECT migration_name AS name, finished_at AS applied_at FROM _prisma_migrations
   WHERE finished_at IS NOT NULL AND rolled_back_at IS NULL ORDER BY migration_name`,
);

const readDiscarded = statement(
  'read_discarded_to_explain',
  `SELECT now() AS now, (SELECT discarded_at FROM discarded_sessions WHERE conversation_id = $1 AND session_id = $2) AS discarded_at`,
);

export interface OwnRows extends Pick<KeyFacts, 'now' | 'discardedAt' | 'migrations' | 'writers' | 'envelopes'> {
  readonly session: SessionRowFacts | undefined;
}

/** What session's own database has to say of one session and one device, also where rows are damaged. */
export async function readOwnRows(
  db: Queryable,
  { conversationId, sessionId }: SessionName,
  { userId, deviceId }: DeviceId,
): Promise<OwnRows> {
  const [rows, envelopes, writers, migrations, discarded] = await Promise.all([
    db.query<SessionRow>(readRow, [conversationId, sessionId, userId, deviceId]),
    db.query<EnvelopeRow>(readEnvelopes, [conversationId, sessionId, userId, deviceId]),
    db.query<{ build: string; first_at: Date; last_at: Date }>(readWriters, [conversationId]),
    db.query<{ name: string; applied_at: Date }>(readMigrations, []),
    db.query<{ now: Date; discarded_at: Date | null }>(readDiscarded, [conversationId, sessionId]),
  ]);
  return {
    session: rows[0] && sessionOf(rows[0]),
    envelopes: envelopes.map(envelopeOf),
    writers: writers.map(({ build, first_at, last_at }) => ({ build, firstAt: first_at, lastAt: last_at })),
    migrations: migrations.map(({ name, applied_at }) => ({ name, appliedAt: applied_at })),
    now: discarded[0]?.now ?? new Date(),
    discardedAt: discarded[0]?.discarded_at ?? undefined,
  };
}

const readNewest = statement(
  'read_newest_session_to_explain',
  'SELECT session_id FROM sessions WHERE conversation_id = $1 ORDER BY epoch DESC, created_at DESC LIMIT 1',
);

/** The session of the highest epoch that is stored: what an operator means who names none and conversation does not know one. */
export async function readNewestSessionId(db: Queryable, conversationId: string): Promise<string | undefined> {
  const [row] = await db.query<{ session_id: string }>(readNewest, [conversationId]);
  return row?.session_id;
}

const readInvolved = statement(
  'read_involved_devices',
  `SELECT DISTINCT user_id || ' ' || device_id AS device FROM (
     SELECT user_id, device_id FROM envelopes WHERE conversation_id = $1 AND session_id = $2
     UNION ALL SELECT user_id, device_id FROM withholdings WHERE conversation_id = $1 AND session_id = $2
     UNION ALL SELECT user_id, device_id FROM key_requests WHERE conversation_id = $1
     UNION ALL SELECT initiator_user_id, initiator_device_id FROM sessions WHERE conversation_id = $1) involved
   LIMIT 20000`,
);

/** The devices that have to do with a session: recipients, requesters of the conversation, initiators. */
export async function readInvolvedDevices(
  db: Queryable,
  { conversationId, sessionId }: SessionName,
): Promise<DeviceId[]> {
  const rows = await db.query<{ device: string }>(readInvolved, [conversationId, sessionId]);
  return rows.map(({ device }) => deviceOfKey(device));
}

interface EnvelopeRow {
  attempt: number;
  key_request_id: string | null;
  sealer_user_id: string;
  sealer_device_id: string;
  written_at: Date;
  opened_at: Date | null;
  rejected_at: Date | null;
  rejected_because: string | null;
}

function envelopeOf(row: EnvelopeRow): EnvelopeFacts {
  return {
    attempt: row.attempt,
    keyRequestId: row.key_request_id ?? undefined,
    sealer: { userId: row.sealer_user_id, deviceId: row.sealer_device_id },
    writtenAt: row.written_at,
    openedAt: row.opened_at ?? undefined,
    rejectedAt: row.rejected_at ?? undefined,
    rejectedBecause: row.rejected_because ?? undefined,
  };
}

function sessionOf(row: SessionRow): SessionRowFacts {
  return {
    imported: row.kind === 'IMPORTED',
    epoch: row.epoch,
    initiator: { userId: row.initiator_user_id, deviceId: row.initiator_device_id },
    hasHeader: row.has_header,
    hasEphemeralKey: row.has_ephemeral_key,
    hasIdentityKey: row.has_identity_key,
    envelopesExpected: row.envelopes_expected,
    envelopesPresent: row.envelopes_present,
    envelopesErased: row.envelopes_erased,
    withheldReason: row.withheld_reason ?? undefined,
    writerBuild: row.writer_build,
    writerSchema: row.writer_schema ?? undefined,
    traceId: row.created_trace_id,
    createdAt: row.created_at,
  };
}
