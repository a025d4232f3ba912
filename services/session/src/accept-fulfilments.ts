import { timestampDate } from '@bufbuild/protobuf/wkt';
import { ConnectError } from '@connectrpc/connect';
import {
  type CheckEntitlementResponse,
  type Device,
  type DeviceList,
  type Envelope,
  MissCause,
} from '@keytrail/contracts';
import { EnvelopeError, envelopeStatement } from '@keytrail/crypto';
import { verifySignatures } from '@keytrail/crypto/node';
import { type Call, invalidField } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { attr, linkFromTraceparent, trace } from '@keytrail/telemetry';
import { callNext } from './dispatch-key-request.ts';
import { equalBytes } from './domain/bytes.ts';
import { type DeviceId, deviceKey, sameDevice } from './domain/device.ts';
import { whyNotEntitled } from './domain/explain-miss.ts';
import { advance, isOpen, type KeyRequest } from './domain/key-request.ts';
import { announceDeliveries } from './key-request-events.ts';
import { measureHolder } from './key-request-metrics.ts';
import type { Parts } from './parts.ts';
import { askDeviceLists, askEntitlements, entitledUsers, findDevice } from './peers.ts';
import {
  certificateInvalid,
  keyRequestEnded,
  notEntitled,
  notOffered,
  peerUnavailable,
  signatureInvalid,
} from './refusals.ts';
import { type Fulfilment, fulfillWithEnvelopes } from './store/envelopes.ts';
import { lockKeyRequests, type OfferedRequest, readOfferedRequests } from './store/key-requests.ts';
import { lockRequesters } from './store/requesters.ts';
import { sessionKey } from './wanted-keys.ts';

/** A request is fulfilled by one envelope. */
export const envelopesExpected = 1;

/** An envelope by which a holder wants to fulfil a request. `path` is where it stands in the call. */
export interface SentEnvelope {
  readonly keyRequestId: string;
  readonly attempt: number;
  readonly envelope: Envelope;
  readonly path: string;
}

export interface CheckedEnvelope {
  readonly sent: SentEnvelope;
  readonly offered: OfferedRequest;
}

/**
 * Checks envelopes of one holder: each was offered, names its parties, comes from one who may seal it to one who may have it, now, and is signed
 * by the key that identity-keys knows of the holder. In their order; what is refused has its refusal. Throws PEER_UNAVAILABLE.
 */
export async function checkEnvelopes(
  { db, peers }: Parts,
  sent: readonly SentEnvelope[],
  holder: DeviceId,
  call: Call,
): Promise<readonly (CheckedEnvelope | ConnectError)[]> {
  const offers = await readOfferedRequests(db, sent, holder);
  const results = sent.map((each, place) => outcome(() => offeredTo(holder, each, offers[place])));
  const offered = results.filter(isChecked);
  if (offered.length === 0) return results;

  const sessions = Map.groupBy(offered, ({ offered: { request } }) => sessionKey(request));
  const asked = [...sessions.values()].map((several) => {
    const { conversationId, sessionId } = (several[0] as CheckedEnvelope).offered.request;
    const requesters = several.map(({ offered: { request } }) => request.requester.userId);
    return { conversationId, sessionId, userIds: [...new Set([holder.userId, ...requesters])] };
  });
  const users = offered.map(({ offered: { request } }) => request.requester.userId);
  const [entitlements, deviceLists] = await Promise.all([
    askEntitlements(peers, asked, call.log),
    askDeviceLists(peers, [holder.userId, ...users], call.log),
  ]);
  if (!entitlements.known) throw peerUnavailable(entitlements.peer);
  if (!deviceLists.known) throw peerUnavailable(deviceLists.peer);
  const entitlementOf = new Map([...sessions.keys()].map((key, place) => [key, entitlements.value[place]]));
  const righted = results.map((result) => {
    if (!isChecked(result)) return result;
    const entitlement = entitlementOf.get(sessionKey(result.offered.request));
    if (!entitlement) throw new Error('an entitlement is missing');
    return outcome(() => {
      const registered = checkRights(result, holder, entitlement, deviceLists.value);
      checkSealer(result.sent, registered);
      return { ...result, ...signatureOf(result, registered) };
    });
  });
  return verified(righted);
}

function isChecked<T extends object>(result: T | ConnectError): result is T {
  return !(result instanceof ConnectError);
}

function outcome<T>(check: () => T): T | ConnectError {
  try {
    return check();
  } catch (refusal) {
    if (refusal instanceof ConnectError) return refusal;
    throw refusal;
  }
}

function offeredTo(holder: DeviceId, sent: SentEnvelope, offered: OfferedRequest | undefined): CheckedEnvelope {
  if (!offered || offered.declined) throw notOffered(sent.keyRequestId);
  checkParties(sent, offered.request.requester, holder);
  return { sent, offered };
}

function checkParties({ envelope, attempt, path }: SentEnvelope, requester: DeviceId, holder: DeviceId): void {
  if (envelope.attempt !== attempt) throw invalidField(`${path}.attempt`, 'must be the attempt that is fulfilled');
  if (!envelope.recipient || !sameDevice(envelope.recipient, requester))
    throw invalidField(`${path}.recipient`, 'must be the device that requested the key');
  if (!envelope.sealer || !sameDevice(envelope.sealer, holder))
    throw invalidField(`${path}.sealer`, 'must be the calling device');
}

/** Both must be entitled and neither revoked, now. The holder as it is registered. */
function checkRights(
  { offered: { request } }: CheckedEnvelope,
  holder: DeviceId,
  entitlement: CheckEntitlementResponse,
  deviceLists: readonly DeviceList[],
): Device {
  const entitled = entitledUsers(entitlement);
  // A holder who lost its own right is told that, and nothing of the requester.
  for (const [who, device] of [
    ['holder', holder],
    ['requester', request.requester],
  ] as const) {
    if (!entitled.has(device.userId)) {
      const own = entitlement.entitlements.find(({ userId }) => userId === device.userId);
      throw notEntitled(who, whyNotEntitled(own?.memberships ?? [], request.epoch).cause);
    }
    const registered = findDevice(deviceLists, device);
    if (!registered) throw notEntitled(who, MissCause.DEVICE_UNKNOWN);
    if (registered.revokedAt) throw notEntitled(who, MissCause.DEVICE_REVOKED);
  }
  return findDevice(deviceLists, holder) as Device;
}

function checkSealer({ envelope, path }: SentEnvelope, registered: Device): void {
  const { sealerCertificate: certificate } = envelope;
  if (!equalBytes(envelope.sealerIdentityKey, registered.identityKey))
    throw invalidField(`${path}.sealer_identity_key`, "must be the calling device's registered key");
  if (!equalBytes(envelope.sealerSigningKey, registered.signingKey))
    throw invalidField(`${path}.sealer_signing_key`, "must be the calling device's registered key");
  const own = registered.certificate;
  if (
    !certificate?.certifiedAt ||
    !own?.certifiedAt ||
    certificate.suite !== own.suite ||
    !equalBytes(certificate.rootKey, own.rootKey) ||
    !equalBytes(certificate.signature, own.signature) ||
    timestampDate(certificate.certifiedAt).getTime() !== timestampDate(own.certifiedAt).getTime()
  )
    throw certificateInvalid(`${path}.sealer_certificate`, 'not the registered one');
}

type Signed = Parameters<typeof verifySignatures>[0][number];

function signatureOf({ sent, offered }: CheckedEnvelope, registered: Device): { readonly signed: Signed } {
  const { conversationId, sessionId, epoch } = offered.request;
  const session = { conversationId, sessionId, epoch, headerHash: offered.headerHash ?? new Uint8Array() };
  try {
    return { signed: { ...envelopeStatement(sent.envelope, session), publicKey: registered.signingKey } };
  } catch (error) {
    if (!(error instanceof EnvelopeError)) throw error;
    throw invalidField(sent.path, error.message);
  }
}

/** The signatures are verified off the event loop, all of a call together. */
async function verified(
  results: readonly ((CheckedEnvelope & { readonly signed: Signed }) | ConnectError)[],
): Promise<readonly (CheckedEnvelope | ConnectError)[]> {
  const signed = results.filter(isChecked);
  const verdicts = await verifySignatures(signed.map((each) => each.signed));
  const held = new Map(signed.map((each, place) => [each, verdicts[place]]));
  return results.map((result) => {
    if (!isChecked(result)) return result;
    if (!held.get(result)) return signatureInvalid(`${result.sent.path}.signature`);
    return result;
  });
}

/**
 * Writes checked envelopes of one holder, each if its request still stands as it must. In their order; the requests as they are then, or why
 * not. What waits for the room that is free now goes on. Throws `isOfErasedUser` when a user is being erased this very moment.
 */
export async function acceptEnvelopes(
  tx: Transaction,
  checked: readonly CheckedEnvelope[],
  by: { readonly holder: DeviceId; readonly writerBuild: string },
): Promise<readonly (KeyRequest | ConnectError)[]> {
  const requesters = new Map(
    checked.map(({ offered: { request } }) => [deviceKey(request.requester), request.requester]),
  );
  lockRequesters(tx, [...requesters.values()]);
  const locked = await lockKeyRequests(
    tx,
    checked.map(({ sent }) => sent.keyRequestId),
  );
  linkRequests([...locked.values()]);
  const advanced = checked.map(({ sent, offered }) => outcome(() => fulfilledBy(sent, offered, locked)));
  const writing = advanced.filter(isChecked);
  const written = await fulfillWithEnvelopes(tx, by, writing);
  const results = advanced.map((result) => {
    if (!isChecked(result)) return result;
    return outcome(() => writtenOf(result.request, written.get(result.request.keyRequestId)));
  });

  const offeredAts = new Map(checked.map(({ sent, offered }) => [sent.keyRequestId, offered.offeredAt]));
  const ofRequester = Map.groupBy(results.filter(isChecked), ({ requester }) => deviceKey(requester));
  for (const [key, requests] of ofRequester) {
    await announceDeliveries(tx, requests, by.holder);
    for (const request of requests) {
      const offeredAt = offeredAts.get(request.keyRequestId);
      if (offeredAt) measureHolder(tx, offeredAt, request);
    }
    await callNext(tx, requesters.get(key) as DeviceId, requests.length);
  }
  return results;
}

const linksAtMost = 16;

/** A batch may answer what was asked in several traces, and a holder may come long after: those are linked. */
function linkRequests(requests: readonly KeyRequest[]): void {
  const span = trace.getActiveSpan();
  const links = requests.flatMap(
    ({ traceparent }) => linkFromTraceparent(traceparent, { [attr.link]: 'key_requested' }) ?? [],
  );
  const byTrace = new Map(links.map((link) => [link.context.traceId, link]));
  byTrace.delete(span?.spanContext().traceId ?? '');
  for (const link of [...byTrace.values()].slice(0, linksAtMost)) span?.addLink(link);
}

function fulfilledBy(
  { keyRequestId, attempt, envelope }: SentEnvelope,
  offered: OfferedRequest,
  locked: ReadonlyMap<string, KeyRequest>,
): { readonly request: KeyRequest; readonly envelope: Envelope; readonly version: number } {
  const request = locked.get(keyRequestId);
  if (!request) throw notOffered(keyRequestId);
  if (!isOpen(request.state)) throw keyRequestEnded(request, attempt);
  return { request: advance(request, { kind: 'fulfilled', attempt }, offered.now), envelope, version: request.version };
}

function writtenOf(request: KeyRequest, fulfilment: Fulfilment | undefined): KeyRequest {
  if (!fulfilment?.offered) throw notOffered(request.keyRequestId);
  if (fulfilment.holder_revoked) throw notEntitled('holder', MissCause.DEVICE_REVOKED);
  if (fulfilment.requester_revoked) throw notEntitled('requester', MissCause.DEVICE_REVOKED);
  if (!fulfilment.written) throw new Error('no envelope was written of a locked key request');
  return request;
}

/** One line for each envelope that was written. */
export function tellFulfilled(request: KeyRequest, call: Call): void {
  const { keyRequestId, conversationId, sessionId, acceptedAttempt, requestedAt } = request;
  trace.getActiveSpan()?.setAttributes({
    [attr.keyRequestId]: keyRequestId,
    [attr.keyRequestState]: request.state,
    [attr.envelopesWritten]: envelopesExpected,
    [attr.envelopesExpected]: envelopesExpected,
  });
  call.log.info(
    {
      keyRequestId,
      conversationId,
      sessionId,
      attempt: acceptedAttempt,
      envelopesWritten: envelopesExpected,
      envelopesExpected,
      afterMs: Date.now() - requestedAt.getTime(),
    },
    'key request fulfilled',
  );
}
