import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { Envelope } from '@keytrail/contracts';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import { type DeviceId, deviceOfKey } from '../domain/device.ts';
import type { KeyRequest } from '../domain/key-request.ts';

// Looked at again here, behind the lock on the requests: whatever was checked before may have ended while it was waited for. An erasure that
// is noted in this very moment is the trigger's part.
const fulfillStatement = statement(
  'fulfill_with_envelopes',
  `WITH given AS (
     SELECT * FROM unnest($3::uuid[], $4::integer[], $5::integer[], $6::integer[], $7::timestamptz[], $8::text[], $9::bytea[],
       $10::bytea[], $11::bytea[], $12::integer[], $13::timestamptz[], $14::bytea[], $15::bytea[], $16::bigint[], $17::bigint[],
       $18::bigint[], $19::bytea[], $20::bytea[], $21::bytea[]) AS g
       (key_request_id, attempt, was, version, ended_at, ended_because, sealer_identity_key, sealer_signing_key, sealer_root_key,
        sealer_suite, sealer_certified_at, sealer_certificate_signature, sealer_ephemeral_key, signed_prekey_id, one_time_prekey_id,
        kem_prekey_id, kem_ciphertext, ciphertext, signature)),
   standing AS (
     SELECT g.key_request_id, k.conversation_id, k.session_id, k.user_id, k.device_id,
       EXISTS (SELECT FROM offers o WHERE o.key_request_id = g.key_request_id AND o.attempt = g.attempt
         AND o.user_id = $1 AND o.device_id = $2 AND o.declined_at IS NULL) AS offered,
       EXISTS (SELECT FROM revoked_devices r WHERE r.user_id = k.user_id AND r.device_id = k.device_id)
         OR EXISTS (SELECT FROM erasures e WHERE e.user_id = k.user_id) AS requester_revoked,
       EXISTS (SELECT FROM revoked_devices WHERE user_id = $1 AND device_id = $2)
         OR EXISTS (SELECT FROM erasures WHERE user_id = $1) AS holder_revoked
     FROM given g JOIN key_requests k ON k.key_request_id = g.key_request_id AND k.version = g.was),
   fulfilled AS (
     UPDATE key_requests k SET state = 'FULFILLED', accepted_attempt = g.attempt, queued_at = NULL, ended_at = g.ended_at,
       ended_because = g.ended_because, version = g.version
     FROM given g JOIN standing s USING (key_request_id)
     WHERE k.key_request_id = g.key_request_id AND k.version = g.was
       AND s.offered AND NOT s.requester_revoked AND NOT s.holder_revoked RETURNING k.key_request_id),
   written AS (
     INSERT INTO envelopes (conversation_id, session_id, user_id, device_id, attempt, key_request_id, sealer_user_id, sealer_device_id,
       sealer_identity_key, sealer_signing_key, sealer_root_key, sealer_suite, sealer_certified_at, sealer_certificate_signature,
       sealer_ephemeral_key, signed_prekey_id, one_time_prekey_id, kem_prekey_id, kem_ciphertext, ciphertext, signature, writer_build)
     SELECT s.conversation_id, s.session_id, s.user_id, s.device_id, g.attempt, g.key_request_id, $1, $2,
       g.sealer_identity_key, g.sealer_signing_key, g.sealer_root_key, g.sealer_suite, g.sealer_certified_at,
       g.sealer_certificate_signature, g.sealer_ephemeral_key, g.signed_prekey_id, g.one_time_prekey_id, g.kem_prekey_id,
       g.kem_ciphertext, g.ciphertext, g.signature, $22
     FROM fulfilled JOIN standing s USING (key_request_id) JOIN given g USING (key_request_id)
     RETURNING key_request_id)
   SELECT s.key_request_id, s.offered, s.requester_revoked, s.holder_revoked, w.key_request_id IS NOT NULL AS written
   FROM standing s LEFT JOIN written w USING (key_request_id)`,
);

export interface Fulfilment {
  readonly key_request_id: string;
  /** Whether an envelope was written: none was when one of the others stands against it. */
  readonly written: boolean;
  readonly offered: boolean;
  /** Or its user is erased. */
  readonly requester_revoked: boolean;
  readonly holder_revoked: boolean;
}

/**
 * Writes the envelopes by which one holder fulfils requests, and the requests as they are then; not where the offer or one of the devices is
 * good no more. The requests are locked, and were at `version`. Throws `isOfErasedUser` when a user is being erased.
 */
export async function fulfillWithEnvelopes(
  tx: Transaction,
  { holder, writerBuild }: { readonly holder: DeviceId; readonly writerBuild: string },
  fulfilments: readonly { readonly request: KeyRequest; readonly envelope: Envelope; readonly version: number }[],
): Promise<ReadonlyMap<string, Fulfilment>> {
  const given = fulfilments.map(({ request, envelope, version }) => {
    const { sealerCertificate: certificate } = envelope;
    if (!certificate?.certifiedAt) throw new Error('the envelope was not checked');
    const certifiedAt = timestampDate(certificate.certifiedAt);
    return { request, envelope, version, certificate, certifiedAt };
  });
  const rows = await tx.query<Fulfilment>(fulfillStatement, [
    holder.userId,
    holder.deviceId,
    given.map(({ request }) => request.keyRequestId),
    given.map(({ envelope }) => envelope.attempt),
    given.map(({ version }) => version),
    given.map(({ request }) => request.version),
    given.map(({ request }) => request.endedAt),
    given.map(({ request }) => request.endedBecause),
    given.map(({ envelope }) => envelope.sealerIdentityKey),
    given.map(({ envelope }) => envelope.sealerSigningKey),
    given.map(({ certificate }) => certificate.rootKey),
    given.map(({ certificate }) => certificate.suite),
    given.map(({ certifiedAt }) => certifiedAt),
    given.map(({ certificate }) => certificate.signature),
    given.map(({ envelope }) => envelope.sealerEphemeralKey),
    given.map(({ envelope }) => envelope.signedPrekeyId),
    given.map(({ envelope }) => envelope.oneTimePrekeyId),
    given.map(({ envelope }) => envelope.kemPrekeyId),
    given.map(({ envelope }) => envelope.kemCiphertext),
    given.map(({ envelope }) => envelope.ciphertext),
    given.map(({ envelope }) => envelope.signature),
    writerBuild,
  ]);
  return new Map(rows.map((row) => [row.key_request_id, row]));
}

const openedStatement = statement(
  'mark_envelope_opened',
  `UPDATE envelopes SET opened_at = coalesce(opened_at, now())
   WHERE conversation_id = $1 AND session_id = $2 AND user_id = $3 AND device_id = $4 AND attempt = $5 RETURNING true AS marked`,
);

/** Notes that its recipient opened the envelope; the first time stands. False when there is no such envelope. */
export async function markEnvelopeOpened(
  db: Queryable,
  of: { readonly conversationId: string; readonly sessionId: string; readonly attempt: number },
  recipient: DeviceId,
): Promise<boolean> {
  const { conversationId, sessionId, attempt } = of;
  const marked = await db.query(openedStatement, [
    conversationId,
    sessionId,
    recipient.userId,
    recipient.deviceId,
    attempt,
  ]);
  return marked.length > 0;
}

const rejectedStatement = statement(
  'mark_envelope_rejected',
  `WITH found AS (
     SELECT attempt, rejected_at IS NOT NULL AS before FROM envelopes
     WHERE conversation_id = $1 AND session_id = $2 AND user_id = $3 AND device_id = $4 AND attempt = $5 FOR UPDATE)
   UPDATE envelopes e SET rejected_at = coalesce(e.rejected_at, now()), rejected_because = coalesce(e.rejected_because, $6)
   FROM found WHERE e.conversation_id = $1 AND e.session_id = $2 AND e.user_id = $3 AND e.device_id = $4 AND e.attempt = found.attempt
   RETURNING e.sealer_user_id || ' ' || e.sealer_device_id AS sealer, found.before,
     (SELECT max(n.attempt) FROM envelopes n
       WHERE n.conversation_id = $1 AND n.session_id = $2 AND n.user_id = $3 AND n.device_id = $4) > e.attempt AS superseded`,
);

/** What the recipient of an envelope says is wrong with it. */
export type RejectedBecause = 'COMMITMENT' | 'SIGNATURE' | 'CERTIFICATE' | 'CANNOT_OPEN';

export interface Rejection {
  readonly sealer: DeviceId;
  /** It was rejected before; the first reason stands. */
  readonly before: boolean;
  /** The recipient has a newer envelope. */
  readonly superseded: boolean;
}

/** Notes that its recipient found the envelope wrong. Undefined when there is no such envelope. */
export async function markEnvelopeRejected(
  db: Queryable,
  of: { readonly conversationId: string; readonly sessionId: string; readonly attempt: number },
  recipient: DeviceId,
  because: RejectedBecause | undefined,
): Promise<Rejection | undefined> {
  const { conversationId, sessionId, attempt } = of;
  const [row] = await db.query<{ sealer: string; before: boolean; superseded: boolean }>(rejectedStatement, [
    conversationId,
    sessionId,
    recipient.userId,
    recipient.deviceId,
    attempt,
    because ?? null,
  ]);
  return row && { sealer: deviceOfKey(row.sealer), before: row.before, superseded: row.superseded };
}
