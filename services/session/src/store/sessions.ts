import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { Envelope, InitialSession, SessionHeader, Withholding } from '@keytrail/contracts';
import { WithheldReasonSchema } from '@keytrail/contracts';
import { statement, type Transaction } from '@keytrail/storage';

export interface SessionToStore {
  readonly conversationId: string;
  readonly header: SessionHeader;
  readonly headerHash: Uint8Array;
  readonly session: InitialSession;
  /** SHA-256 over what the initiator uploaded. */
  readonly contentDigest: Uint8Array;
  readonly writerBuild: string;
  /** The newest migration that the writer knows. */
  readonly writerSchema: string;
  readonly traceparent: string;
}

export interface StoredSession {
  readonly contentDigest: Uint8Array | null;
  readonly envelopesExpected: number;
  /** Counted: the rows that are there for the initiator's upload, and those that were erased with their recipients since. */
  readonly envelopes: number;
  readonly withholdings: number;
}

const insertSession = statement(
  'insert_session',
  `INSERT INTO sessions (conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, header, header_signature,
     header_hash, initiator_identity_key, initiator_signing_key, initiator_ephemeral_key, initiator_root_key, initiator_suite,
     initiator_certified_at, initiator_certificate_signature, key_commitment, envelopes_expected, withholdings_expected,
     content_digest, writer_build, created_traceparent, writer_schema)
   VALUES ($1, $2, 'NATIVE', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
   ON CONFLICT (conversation_id, session_id) DO NOTHING RETURNING true AS stored`,
);

const insertEnvelopes = statement(
  'insert_envelopes',
  `WITH written AS (
     INSERT INTO envelopes (conversation_id, session_id, user_id, device_id, attempt, sealer_user_id, sealer_device_id,
       sealer_identity_key, sealer_signing_key, sealer_root_key, sealer_suite, sealer_certified_at, sealer_certificate_signature,
       sealer_ephemeral_key, signed_prekey_id, one_time_prekey_id, kem_prekey_id, kem_ciphertext, ciphertext, signature)
     SELECT $1, $2, user_id, device_id, 0, $3, $4, $5, $6, $7, $8, $9, $10, $11, signed_prekey_id, one_time_prekey_id, kem_prekey_id,
       kem_ciphertext, ciphertext, signature
     FROM unnest($12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::bigint[], $17::bytea[], $18::bytea[], $19::bytea[])
       AS e (user_id, device_id, signed_prekey_id, one_time_prekey_id, kem_prekey_id, kem_ciphertext, ciphertext, signature)
     RETURNING 1)
   SELECT count(*)::integer AS written FROM written`,
);

const insertWithholdings = statement(
  'insert_withholdings',
  `WITH written AS (
     INSERT INTO withholdings (conversation_id, session_id, user_id, device_id, reason, signature)
     SELECT $1, $2, user_id, device_id, reason, signature
     FROM unnest($3::text[], $4::text[], $5::text[], $6::bytea[]) AS w (user_id, device_id, reason, signature)
     RETURNING 1)
   SELECT count(*)::integer AS written FROM written`,
);

const readStored = statement(
  'read_stored_session',
  `SELECT content_digest, envelopes_expected,
     (SELECT count(*)::integer FROM envelopes WHERE conversation_id = $1 AND session_id = $2 AND attempt = 0)
       + coalesce(e.envelopes, 0) AS envelopes,
     (SELECT count(*)::integer FROM withholdings WHERE conversation_id = $1 AND session_id = $2)
       + coalesce(e.withholdings, 0) AS withholdings
   FROM sessions LEFT JOIN erased_parts e USING (conversation_id, session_id)
   WHERE conversation_id = $1 AND session_id = $2`,
);

export async function readStoredSession(
  db: Pick<Transaction, 'query'>,
  conversationId: string,
  sessionId: string,
): Promise<StoredSession | undefined> {
  const [row] = await db.query<{
    content_digest: Buffer | null;
    envelopes_expected: number;
    envelopes: number;
    withholdings: number;
  }>(readStored, [conversationId, sessionId]);
  return (
    row && {
      contentDigest: row.content_digest,
      envelopesExpected: row.envelopes_expected,
      envelopes: row.envelopes,
      withholdings: row.withholdings,
    }
  );
}

/**
 * Writes a session with all its envelopes and withholdings, or finds that another call has. Waits for a concurrent writer of the same id.
 * Returns how many rows were written; undefined when the session is there already.
 */
export async function insertWholeSession(
  tx: Transaction,
  {
    conversationId,
    header,
    headerHash,
    session,
    contentDigest,
    writerBuild,
    writerSchema,
    traceparent,
  }: SessionToStore,
): Promise<{ envelopes: number; withholdings: number } | undefined> {
  const initiator = header.initiator;
  const certificate = session.initiatorCertificate;
  const signedHeader = session.signedHeader;
  if (!initiator || !certificate?.certifiedAt || !signedHeader) throw new Error('the session was not checked');
  const { envelopes, withholdings } = session;
  const stored = await tx.query(insertSession, [
    conversationId,
    header.sessionId,
    header.epoch,
    initiator.userId,
    initiator.deviceId,
    signedHeader.header,
    signedHeader.signature,
    headerHash,
    header.initiatorIdentityKey,
    header.initiatorSigningKey,
    header.initiatorEphemeralKey,
    certificate.rootKey,
    certificate.suite,
    timestampDate(certificate.certifiedAt),
    certificate.signature,
    header.keyCommitment,
    envelopes.length,
    withholdings.length,
    contentDigest,
    writerBuild,
    traceparent,
    writerSchema,
  ]);
  if (stored.length === 0) return undefined;
  const [writtenEnvelopes] = await tx.query<{ written: number }>(insertEnvelopes, [
    conversationId,
    header.sessionId,
    initiator.userId,
    initiator.deviceId,
    header.initiatorIdentityKey,
    header.initiatorSigningKey,
    certificate.rootKey,
    certificate.suite,
    timestampDate(certificate.certifiedAt),
    certificate.signature,
    header.initiatorEphemeralKey,
    envelopes.map(({ recipient }) => recipient?.userId),
    envelopes.map(({ recipient }) => recipient?.deviceId),
    envelopes.map(({ signedPrekeyId }) => signedPrekeyId),
    envelopes.map(({ oneTimePrekeyId }) => oneTimePrekeyId),
    envelopes.map(({ kemPrekeyId }) => kemPrekeyId),
    envelopes.map(({ kemCiphertext }) => bytes(kemCiphertext)),
    envelopes.map(({ ciphertext }) => bytes(ciphertext)),
    envelopes.map(({ signature }: Envelope) => bytes(signature)),
  ]);
  const writtenWithholdings =
    withholdings.length === 0 ? 0 : await writeWithholdings(tx, conversationId, header.sessionId, withholdings);
  return { envelopes: writtenEnvelopes?.written ?? 0, withholdings: writtenWithholdings };
}

async function writeWithholdings(
  tx: Transaction,
  conversationId: string,
  sessionId: string,
  withholdings: readonly Withholding[],
): Promise<number> {
  const [row] = await tx.query<{ written: number }>(insertWithholdings, [
    conversationId,
    sessionId,
    withholdings.map(({ device }) => device?.userId),
    withholdings.map(({ device }) => device?.deviceId),
    withholdings.map(({ reason }) => WithheldReasonSchema.value[reason]?.localName),
    withholdings.map(({ signature }) => bytes(signature)),
  ]);
  return row?.written ?? 0;
}

/** Inside an array parameter, pg writes a Buffer as bytea. */
function bytes(view: Uint8Array): Buffer {
  return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
}
