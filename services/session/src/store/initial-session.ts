import { type Queryable, statement } from '@keytrail/storage';

/** A session row with the newest envelope of one device. Only an IMPORTED session has columns that are null. */
export interface InitialSessionRow {
  readonly epoch: bigint;
  readonly header: Buffer | null;
  readonly header_signature: Buffer | null;
  readonly initiator_user_id: string;
  readonly initiator_device_id: string;
  readonly initiator_identity_key: Buffer | null;
  readonly initiator_signing_key: Buffer | null;
  readonly initiator_ephemeral_key: Buffer | null;
  readonly initiator_root_key: Buffer | null;
  readonly initiator_suite: number | null;
  readonly initiator_certified_at: Date | null;
  readonly initiator_certificate_signature: Buffer | null;
  readonly key_commitment: Buffer | null;
  readonly created_at: Date;
  readonly attempt: number;
  readonly sealer_user_id: string;
  readonly sealer_device_id: string;
  readonly sealer_identity_key: Buffer;
  readonly sealer_signing_key: Buffer;
  readonly sealer_root_key: Buffer;
  readonly sealer_suite: number;
  readonly sealer_certified_at: Date;
  readonly sealer_certificate_signature: Buffer;
  readonly sealer_ephemeral_key: Buffer;
  readonly signed_prekey_id: bigint;
  readonly one_time_prekey_id: bigint;
  readonly kem_prekey_id: bigint;
  readonly kem_ciphertext: Buffer;
  readonly ciphertext: Buffer;
  readonly signature: Buffer;
  readonly revoked: boolean;
}

export const readInitialSessionStatement = statement(
  'read_initial_session',
  `SELECT s.epoch, s.header, s.header_signature, s.initiator_user_id, s.initiator_device_id, s.initiator_identity_key,
     s.initiator_signing_key, s.initiator_ephemeral_key, s.initiator_root_key, s.initiator_suite, s.initiator_certified_at,
     s.initiator_certificate_signature, s.key_commitment, s.created_at,
     e.attempt, e.sealer_user_id, e.sealer_device_id, e.sealer_identity_key, e.sealer_signing_key, e.sealer_root_key,
     e.sealer_suite, e.sealer_certified_at, e.sealer_certificate_signature, e.sealer_ephemeral_key,
     e.signed_prekey_id, e.one_time_prekey_id, e.kem_prekey_id, e.kem_ciphertext, e.ciphertext, e.signature,
     r.user_id IS NOT NULL AS revoked
   FROM envelopes e
   JOIN sessions s ON s.conversation_id = e.conversation_id AND s.session_id = e.session_id
   LEFT JOIN revoked_devices r ON r.user_id = e.user_id AND r.device_id = e.device_id
   WHERE e.conversation_id = $1 AND e.session_id = $2 AND e.user_id = $3 AND e.device_id = $4
   ORDER BY e.attempt DESC LIMIT 1`,
);

/** The hot read: one statement, by primary keys. Undefined when the device has no envelope. */
export async function readInitialSession(
  db: Queryable,
  conversationId: string,
  sessionId: string,
  userId: string,
  deviceId: string,
): Promise<InitialSessionRow | undefined> {
  const rows = await db.query<InitialSessionRow>(readInitialSessionStatement, [
    conversationId,
    sessionId,
    userId,
    deviceId,
  ]);
  return rows[0];
}

/**
 * Whether the row is a key that the device can open and may have. An envelope of a key request brings its sealer's keys along, so it
 * also heals an imported session without its initiator's.
 */
export function isHit(row: InitialSessionRow): boolean {
  return (
    !row.revoked && (row.attempt > 0 || (row.initiator_ephemeral_key !== null && row.initiator_identity_key !== null))
  );
}

const readHitsStatement = statement(
  'read_hits',
  `SELECT a.conversation_id, a.session_id
   FROM unnest($1::uuid[], $2::text[]) AS a (conversation_id, session_id)
   JOIN sessions s ON s.conversation_id = a.conversation_id AND s.session_id = a.session_id
   CROSS JOIN LATERAL (SELECT e.attempt FROM envelopes e
     WHERE e.conversation_id = a.conversation_id AND e.session_id = a.session_id AND e.user_id = $3 AND e.device_id = $4
     ORDER BY e.attempt DESC LIMIT 1) newest
   WHERE (newest.attempt > 0 OR (s.initiator_ephemeral_key IS NOT NULL AND s.initiator_identity_key IS NOT NULL))
     AND NOT EXISTS (SELECT FROM revoked_devices r WHERE r.user_id = $3 AND r.device_id = $4)`,
);

/** Of the sessions named, those of which the device has a key that is a hit: conversation id, space, session id. */
export async function readHits(
  db: Queryable,
  sessions: readonly { readonly conversationId: string; readonly sessionId: string }[],
  { userId, deviceId }: { readonly userId: string; readonly deviceId: string },
): Promise<ReadonlySet<string>> {
  const rows = await db.query<{ conversation_id: string; session_id: string }>(readHitsStatement, [
    sessions.map(({ conversationId }) => conversationId),
    sessions.map(({ sessionId }) => sessionId),
    userId,
    deviceId,
  ]);
  return new Set(rows.map((row) => `${row.conversation_id} ${row.session_id}`));
}
