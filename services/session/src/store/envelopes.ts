import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { Envelope } from '@keytrail/contracts';
import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import { type DeviceId, deviceOfKey } from '../domain/device.ts';
import type { KeyRequest } from '../domain/key-request.ts';

// Looked at again here, behind the lock on the request: whatever was checked before may have ended while it was waited for. Erasures are
// the trigger's part.
const fulfillStatement = statement(
  'fulfill_with_envelope',
  `WITH standing AS (
     SELECT EXISTS (SELECT FROM offers
         WHERE key_request_id = $6 AND attempt = $5 AND user_id = $7 AND device_id = $8 AND declined_at IS NULL) AS offered,
       EXISTS (SELECT FROM revoked_devices WHERE user_id = $3 AND device_id = $4) AS requester_revoked,
       EXISTS (SELECT FROM revoked_devices WHERE user_id = $7 AND device_id = $8) AS holder_revoked),
   fulfilled AS (
     UPDATE key_requests SET state = $22, accepted_attempt = $5, ended_at = $23, ended_because = $24, version = $25
     WHERE key_request_id = $6 AND version = $26
       AND (SELECT offered AND NOT requester_revoked AND NOT holder_revoked FROM standing) RETURNING key_request_id),
   written AS (
     INSERT INTO envelopes (conversation_id, session_id, user_id, device_id, attempt, key_request_id, sealer_user_id, sealer_device_id,
       sealer_identity_key, sealer_signing_key, sealer_root_key, sealer_suite, sealer_certified_at, sealer_certificate_signature,
       sealer_ephemeral_key, signed_prekey_id, one_time_prekey_id, kem_prekey_id, kem_ciphertext, ciphertext, signature)
     SELECT $1, $2, $3, $4, $5, key_request_id, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21 FROM fulfilled
     RETURNING 1)
   SELECT offered, requester_revoked, holder_revoked, (SELECT count(*)::integer FROM written) AS written FROM standing`,
);

export interface Fulfilment {
  /** How many envelopes were written: none when one of the others stands against it. */
  readonly written: number;
  readonly offered: boolean;
  readonly requester_revoked: boolean;
  readonly holder_revoked: boolean;
}

/**
 * Writes the envelope that fulfils a request, and the request as it is then, unless the offer or one of the devices is good no more, or the
 * request is not at `version` any more. Throws `isOfErasedUser` when either user has been erased.
 */
export async function fulfillWithEnvelope(
  tx: Transaction,
  request: KeyRequest,
  envelope: Envelope,
  version: number,
): Promise<Fulfilment> {
  const { sealer, sealerCertificate: certificate } = envelope;
  if (!sealer || !certificate?.certifiedAt) throw new Error('the envelope was not checked');
  const [fulfilment] = await tx.query<Fulfilment>(fulfillStatement, [
    request.conversationId,
    request.sessionId,
    request.requester.userId,
    request.requester.deviceId,
    envelope.attempt,
    request.keyRequestId,
    sealer.userId,
    sealer.deviceId,
    envelope.sealerIdentityKey,
    envelope.sealerSigningKey,
    certificate.rootKey,
    certificate.suite,
    timestampDate(certificate.certifiedAt),
    certificate.signature,
    envelope.sealerEphemeralKey,
    envelope.signedPrekeyId,
    envelope.oneTimePrekeyId,
    envelope.kemPrekeyId,
    envelope.kemCiphertext,
    envelope.ciphertext,
    envelope.signature,
    request.state,
    request.endedAt,
    request.endedBecause,
    request.version,
    version,
  ]);
  if (!fulfilment) throw new Error('a standing without a row');
  return fulfilment;
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
  `UPDATE envelopes SET rejected_at = coalesce(rejected_at, now())
   WHERE conversation_id = $1 AND session_id = $2 AND user_id = $3 AND device_id = $4 AND attempt = $5
   RETURNING sealer_user_id || ' ' || sealer_device_id AS sealer`,
);

/** Notes that its recipient found the envelope wrong. Its sealer; undefined when there is no such envelope. */
export async function markEnvelopeRejected(
  db: Queryable,
  of: { readonly conversationId: string; readonly sessionId: string; readonly attempt: number },
  recipient: DeviceId,
): Promise<DeviceId | undefined> {
  const { conversationId, sessionId, attempt } = of;
  const [row] = await db.query<{ sealer: string }>(rejectedStatement, [
    conversationId,
    sessionId,
    recipient.userId,
    recipient.deviceId,
    attempt,
  ]);
  return row && deviceOfKey(row.sealer);
}
