import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { ConnectError } from '@connectrpc/connect';
import {
  type GetInitialSessionResponseSchema,
  type KeyRefusalSchema,
  KeyRequestKind,
  KeyRequestPriority,
  type KeyRequestSchema,
  KeyRequestState,
} from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc';
import type { KeyRequest } from '../domain/key-request.ts';
import type { InitialSessionRow } from '../store/initial-session.ts';

const none = new Uint8Array();

export function initialSessionMessage(
  row: InitialSessionRow,
  sessionId: string,
  recipient: { readonly userId: string; readonly deviceId: string },
): MessageInitShape<typeof GetInitialSessionResponseSchema> {
  return {
    sessionId,
    epoch: row.epoch,
    signedHeader: { header: row.header ?? none, signature: row.header_signature ?? none },
    initiator: { userId: row.initiator_user_id, deviceId: row.initiator_device_id },
    initiatorIdentityKey: row.initiator_identity_key ?? none,
    initiatorSigningKey: row.initiator_signing_key ?? none,
    initiatorEphemeralKey: row.initiator_ephemeral_key ?? none,
    ...initiatorCertificate(row),
    keyCommitment: row.key_commitment ?? none,
    envelope: {
      recipient: { userId: recipient.userId, deviceId: recipient.deviceId },
      sealer: { userId: row.sealer_user_id, deviceId: row.sealer_device_id },
      attempt: row.attempt,
      sealerIdentityKey: row.sealer_identity_key,
      sealerSigningKey: row.sealer_signing_key,
      sealerCertificate: {
        rootKey: row.sealer_root_key,
        suite: row.sealer_suite,
        certifiedAt: timestampFromDate(row.sealer_certified_at),
        signature: row.sealer_certificate_signature,
      },
      sealerEphemeralKey: row.sealer_ephemeral_key,
      signedPrekeyId: Number(row.signed_prekey_id),
      oneTimePrekeyId: Number(row.one_time_prekey_id),
      kemPrekeyId: Number(row.kem_prekey_id),
      kemCiphertext: row.kem_ciphertext,
      ciphertext: row.ciphertext,
      signature: row.signature,
    },
    createdAt: timestampFromDate(row.created_at),
  };
}

/** The columns are all there or all absent, by a constraint of the table. */
function initiatorCertificate(row: InitialSessionRow) {
  const {
    initiator_root_key: rootKey,
    initiator_suite: suite,
    initiator_certified_at: certifiedAt,
    initiator_certificate_signature: signature,
  } = row;
  if (rootKey === null || suite === null || certifiedAt === null || signature === null) return {};
  return { initiatorCertificate: { rootKey, suite, certifiedAt: timestampFromDate(certifiedAt), signature } };
}

export function keyRequestMessage(request: KeyRequest): MessageInitShape<typeof KeyRequestSchema> {
  return {
    keyRequestId: request.keyRequestId,
    conversationId: request.conversationId,
    sessionId: request.sessionId,
    epoch: request.epoch,
    requester: { ...request.requester },
    kind: KeyRequestKind[request.kind],
    priority: KeyRequestPriority[request.priority],
    state: KeyRequestState[request.state],
    // Until the first offer of this request, its counter still stands where the last one's ended.
    attempt: request.attempt > request.attemptBase ? request.attempt : 0,
    requestedAt: timestampFromDate(request.requestedAt),
    nextAttemptAt: timestampFromDate(request.nextAttemptAt),
    expiresAt: timestampFromDate(request.expiresAt),
    endedBecause: request.endedBecause ?? '',
    holders: request.holders,
  };
}

/** A refusal as the result of one item of a call with many. */
export function refusedKey(refusal: ConnectError): MessageInitShape<typeof KeyRefusalSchema> {
  const { reason, message, metadata, miss, retryAfterMs } = readRefusal(refusal);
  return { reason, message, metadata: { ...metadata }, ...(miss && { miss }), retryAfterMs: retryAfterMs ?? 0 };
}
