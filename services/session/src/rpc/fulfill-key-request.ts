import { create } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { ConnectError } from '@connectrpc/connect';
import {
  type Device,
  type Envelope,
  FulfillKeyRequestResponseSchema,
  MissCause,
  SessionService,
} from '@keytrail/contracts';
import { EnvelopeError, envelopeStatement } from '@keytrail/crypto';
import { verifySignatures } from '@keytrail/crypto/node';
import { answerOnce, askedRequest, earlierAnswer } from '@keytrail/idempotency';
import { type Call, deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { attr, keepTrace, trace } from '@keytrail/telemetry';
import { equalBytes } from '../domain/bytes.ts';
import { type DeviceId, deviceKey, sameDevice } from '../domain/device.ts';
import { whyNotEntitled } from '../domain/explain-miss.ts';
import { advance, isOpen, type KeyRequest } from '../domain/key-request.ts';
import { announceDelivery } from '../key-request-events.ts';
import type { Parts } from '../parts.ts';
import { askPeers, entitledUsers, findDevice } from '../peers.ts';
import {
  certificateInvalid,
  keyRequestEnded,
  notEntitled,
  notOffered,
  peerUnavailable,
  signatureInvalid,
} from '../refusals.ts';
import { fulfillWithEnvelope } from '../store/envelopes.ts';
import { erasedAmong, isOfErasedUser } from '../store/erasures.ts';
import { lockKeyRequest, type OfferedRequest, readOfferedRequest } from '../store/key-requests.ts';
import { keyRequestMessage } from './messages.ts';

/** A request is fulfilled by one envelope. */
const envelopesExpected = 1;

/**
 * Accepts a re-sealed envelope from a device that was offered the request. An offer that lapsed is still good while the request is open: to
 * lapse only means that others are asked too, and a slow holder must not be asked for ever and refused each time.
 */
export function fulfillKeyRequest(parts: Parts): Rpc {
  const { db } = parts;
  return unary(SessionService.method.fulfillKeyRequest, {
    allow: ['device'],
    async handle(request, call) {
      const holder = deviceCaller(call);
      const { keyRequestId, attempt, envelope } = request;
      if (!envelope) throw new Error('the contract requires an envelope');
      const once = askedRequest(SessionService.method.fulfillKeyRequest, request, deviceKey(holder));
      let offered: OfferedRequest;
      try {
        offered = await checkedOffer(parts, { keyRequestId, attempt, envelope }, holder, call);
      } catch (refusal) {
        if (!(refusal instanceof ConnectError)) throw refusal;
        // Rights that ended after the key was delivered take nothing back from the first answer.
        const earlier = await earlierAnswer(db, once);
        if (earlier) return earlier;
        throw refusal;
      }

      const { requester } = offered.request;
      const { response } = await answerOnce(db, once, async (tx) => {
        const locked = await lockKeyRequest(tx, keyRequestId);
        if (!locked) throw notOffered(keyRequestId);
        if (!isOpen(locked.state)) throw keyRequestEnded(locked, attempt);
        const fulfilled = advance(locked, { kind: 'fulfilled', attempt }, offered.now);
        const { written, ...standing } = await fulfillWithEnvelope(tx, fulfilled, envelope, locked.version);
        if (!standing.offered) throw notOffered(keyRequestId);
        if (standing.requester_revoked) throw notEntitled('requester', MissCause.DEVICE_REVOKED);
        if (standing.holder_revoked) throw notEntitled('holder', MissCause.DEVICE_REVOKED);
        if (written !== envelopesExpected) throw new Error(`${written} envelopes written of a locked key request`);
        keepTrace('key delivered');
        await announceDelivery(tx, fulfilled, holder);
        tx.afterCommit(() => tell(fulfilled, written, call));
        return create(FulfillKeyRequestResponseSchema, { keyRequest: keyRequestMessage(fulfilled) });
      }).catch((error: unknown) => refuseErased(db, requester, error));
      return response;
    },
  });
}

/** Either user may be erased between the look at the device lists and the write; the devices of an erased user are revoked. */
async function refuseErased(db: Parts['db'], requester: DeviceId, error: unknown): Promise<never> {
  if (!isOfErasedUser(error)) throw error;
  const [erased] = await erasedAmong(db, [requester.userId]);
  throw notEntitled(erased === undefined ? 'holder' : 'requester', MissCause.DEVICE_REVOKED);
}

async function checkedOffer(
  parts: Parts,
  { keyRequestId, attempt, envelope }: { keyRequestId: string; attempt: number; envelope: Envelope },
  holder: DeviceId,
  call: Call,
): Promise<OfferedRequest> {
  const offered = await readOfferedRequest(parts.db, keyRequestId, attempt, holder);
  if (!offered || offered.declined) throw notOffered(keyRequestId);
  checkParties(envelope, attempt, offered.request.requester, holder);
  await checkRights(parts, offered, holder, envelope, call);
  return offered;
}

function checkParties(envelope: Envelope, attempt: number, requester: DeviceId, holder: DeviceId): void {
  if (envelope.attempt !== attempt) throw invalidField('envelope.attempt', 'must be the attempt that is fulfilled');
  if (!envelope.recipient || !sameDevice(envelope.recipient, requester))
    throw invalidField('envelope.recipient', 'must be the device that requested the key');
  if (!envelope.sealer || !sameDevice(envelope.sealer, holder))
    throw invalidField('envelope.sealer', 'must be the calling device');
}

/** Both must be entitled and neither revoked, now; and the signature must be by the key that identity-keys knows of the holder. */
async function checkRights(
  { peers }: Parts,
  { request, headerHash }: OfferedRequest,
  holder: DeviceId,
  envelope: Envelope,
  call: Call,
): Promise<void> {
  const { entitlement, deviceLists } = await askPeers(
    peers,
    { ...request, ranked: [holder], withPresence: false },
    call.log,
  );
  if (!entitlement.known) throw peerUnavailable(entitlement.peer);
  if (!deviceLists.known) throw peerUnavailable(deviceLists.peer);
  const entitled = entitledUsers(entitlement.value);
  for (const [who, device] of [
    ['requester', request.requester],
    ['holder', holder],
  ] as const) {
    if (!entitled.has(device.userId)) {
      const own = entitlement.value.entitlements.find(({ userId }) => userId === device.userId);
      throw notEntitled(who, whyNotEntitled(own?.memberships ?? [], request.epoch).cause);
    }
    const registered = findDevice(deviceLists.value, device);
    if (!registered) throw notEntitled(who, MissCause.DEVICE_UNKNOWN);
    if (registered.revokedAt) throw notEntitled(who, MissCause.DEVICE_REVOKED);
  }
  await checkSealing(request, headerHash, findDevice(deviceLists.value, holder) as Device, envelope);
}

async function checkSealing(
  { conversationId, sessionId, epoch }: KeyRequest,
  headerHash: Uint8Array | undefined,
  registered: Device,
  envelope: Envelope,
): Promise<void> {
  const { sealerCertificate: certificate } = envelope;
  if (!equalBytes(envelope.sealerIdentityKey, registered.identityKey))
    throw invalidField('envelope.sealer_identity_key', "must be the calling device's registered key");
  if (!equalBytes(envelope.sealerSigningKey, registered.signingKey))
    throw invalidField('envelope.sealer_signing_key', "must be the calling device's registered key");
  const own = registered.certificate;
  if (
    !certificate?.certifiedAt ||
    !own?.certifiedAt ||
    certificate.suite !== own.suite ||
    !equalBytes(certificate.rootKey, own.rootKey) ||
    !equalBytes(certificate.signature, own.signature) ||
    timestampDate(certificate.certifiedAt).getTime() !== timestampDate(own.certifiedAt).getTime()
  )
    throw certificateInvalid('envelope.sealer_certificate', 'not the registered one');
  const session = { conversationId, sessionId, epoch, headerHash: headerHash ?? new Uint8Array() };
  let held: boolean | undefined;
  try {
    [held] = await verifySignatures([{ ...envelopeStatement(envelope, session), publicKey: registered.signingKey }]);
  } catch (error) {
    if (!(error instanceof EnvelopeError)) throw error;
    throw invalidField('envelope', error.message);
  }
  if (!held) throw signatureInvalid('envelope.signature');
}

function tell(request: KeyRequest, envelopesWritten: number, call: Call): void {
  const { keyRequestId, conversationId, sessionId, acceptedAttempt, requestedAt } = request;
  trace.getActiveSpan()?.setAttributes({
    [attr.keyRequestId]: keyRequestId,
    [attr.keyRequestState]: request.state,
    [attr.envelopesWritten]: envelopesWritten,
    [attr.envelopesExpected]: envelopesExpected,
  });
  call.log.info(
    {
      keyRequestId,
      conversationId,
      sessionId,
      attempt: acceptedAttempt,
      envelopesWritten,
      envelopesExpected,
      afterMs: Date.now() - requestedAt.getTime(),
    },
    'key request fulfilled',
  );
}
