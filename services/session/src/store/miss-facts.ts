import { type Queryable, statement } from '@keytrail/storage';
import { type DeviceId, deviceOfKey } from '../domain/device.ts';

/** All that session's own database knows about one device and one session. */
export interface LocalFacts {
  readonly session: LocalSession | undefined;
  readonly revokedAt: Date | undefined;
  /** Newest attempt with an envelope for the device; undefined when there is none. */
  readonly newestAttempt: number | undefined;
  readonly openRequest: { readonly keyRequestId: string; readonly state: 'WAITING_FOR_HOLDER' | 'OFFERED' } | undefined;
  /** Devices with an envelope and not known to be revoked, the device itself included if it has one. */
  readonly holders: readonly DeviceId[];
  /** The sealer of each envelope for the device that was rejected by it; a sealer stands once for each. */
  readonly rejected: readonly DeviceId[];
  /** By the clock of the database, which all replicas share. */
  readonly now: Date;
}

export interface LocalSession {
  readonly imported: boolean;
  readonly epoch: bigint;
  readonly initiator: DeviceId;
  readonly header: Uint8Array | undefined;
  readonly hasEphemeralKey: boolean;
  readonly hasIdentityKey: boolean;
  readonly envelopesPresent: number;
  readonly envelopesExpected: number;
  readonly withheldReason: string | undefined;
  readonly writerBuild: string;
  readonly createdTraceparent: string;
  readonly createdTraceId: string;
  readonly createdAt: Date;
}

interface Row {
  kind: 'NATIVE' | 'IMPORTED' | null;
  epoch: bigint;
  initiator_user_id: string;
  initiator_device_id: string;
  header: Buffer | null;
  has_ephemeral_key: boolean;
  has_identity_key: boolean;
  envelopes_expected: number;
  writer_build: string;
  created_traceparent: string;
  created_trace_id: string;
  created_at: Date;
  envelopes_present: number;
  newest_attempt: number | null;
  withheld_reason: string | null;
  revoked_at: Date | null;
  key_request_id: string | null;
  state: 'WAITING_FOR_HOLDER' | 'OFFERED' | null;
  holders: string[];
  rejected: string[];
  now: Date;
}

const readStatement = statement(
  'read_miss_facts',
  `SELECT asked.place::integer, s.kind, s.epoch, s.initiator_user_id, s.initiator_device_id, s.header, s.initiator_ephemeral_key IS NOT NULL AS has_ephemeral_key,
     s.initiator_identity_key IS NOT NULL AS has_identity_key, s.envelopes_expected, s.writer_build, s.created_traceparent,
     s.created_trace_id, s.created_at, e.envelopes_present, e.newest_attempt, coalesce(e.holders, '{}') AS holders,
     coalesce(e.rejected, '{}') AS rejected, now() AS now,
     w.reason AS withheld_reason, r.revoked_at, k.key_request_id, k.state
   FROM (SELECT *, $3::text AS user_id, $4::text AS device_id
     FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS a (conversation_id, session_id, place)) AS asked
   LEFT JOIN sessions s USING (conversation_id, session_id)
   LEFT JOIN withholdings w USING (conversation_id, session_id, user_id, device_id)
   LEFT JOIN revoked_devices r USING (user_id, device_id)
   LEFT JOIN key_requests k ON k.conversation_id = asked.conversation_id AND k.session_id = asked.session_id AND k.user_id = $3 AND k.device_id = $4
     AND k.state IN ('WAITING_FOR_HOLDER', 'OFFERED')
   LEFT JOIN LATERAL (
     SELECT (count(*) FILTER (WHERE e.attempt = 0))::integer AS envelopes_present,
       max(e.attempt) FILTER (WHERE e.user_id = $3 AND e.device_id = $4) AS newest_attempt,
       array_agg(DISTINCT e.user_id || ' ' || e.device_id) FILTER (WHERE h.user_id IS NULL) AS holders,
       array_agg(e.sealer_user_id || ' ' || e.sealer_device_id)
         FILTER (WHERE e.user_id = $3 AND e.device_id = $4 AND e.rejected_at IS NOT NULL) AS rejected
     FROM envelopes e LEFT JOIN revoked_devices h ON h.user_id = e.user_id AND h.device_id = e.device_id
     WHERE e.conversation_id = asked.conversation_id AND e.session_id = asked.session_id
   ) e ON true
   ORDER BY asked.place`,
);

export async function readLocalFacts(
  db: Queryable,
  conversationId: string,
  sessionId: string,
  device: DeviceId,
): Promise<LocalFacts> {
  const [facts] = await readLocalFactsOfMany(db, [{ conversationId, sessionId }], device);
  if (!facts) throw new Error('the facts of a miss are always one row');
  return facts;
}

/** The facts of one device and each of the sessions named, in their order. */
export async function readLocalFactsOfMany(
  db: Queryable,
  sessions: readonly { readonly conversationId: string; readonly sessionId: string }[],
  { userId, deviceId }: DeviceId,
): Promise<LocalFacts[]> {
  const rows = await db.query<Row>(readStatement, [
    sessions.map(({ conversationId }) => conversationId),
    sessions.map(({ sessionId }) => sessionId),
    userId,
    deviceId,
  ]);
  return rows.map((row) => ({
    session: row.kind === null ? undefined : localSession(row, row.kind),
    revokedAt: row.revoked_at ?? undefined,
    newestAttempt: row.newest_attempt ?? undefined,
    openRequest:
      row.key_request_id === null || row.state === null
        ? undefined
        : { keyRequestId: row.key_request_id, state: row.state },
    holders: row.holders.map(deviceOfKey),
    rejected: row.rejected.map(deviceOfKey),
    now: row.now,
  }));
}

function localSession(row: Row, kind: 'NATIVE' | 'IMPORTED'): LocalSession {
  return {
    imported: kind === 'IMPORTED',
    epoch: row.epoch,
    initiator: { userId: row.initiator_user_id, deviceId: row.initiator_device_id },
    header: row.header ?? undefined,
    hasEphemeralKey: row.has_ephemeral_key,
    hasIdentityKey: row.has_identity_key,
    envelopesPresent: row.envelopes_present,
    envelopesExpected: row.envelopes_expected,
    withheldReason: row.withheld_reason ?? undefined,
    writerBuild: row.writer_build,
    createdTraceparent: row.created_traceparent,
    createdTraceId: row.created_trace_id,
    createdAt: row.created_at,
  };
}
