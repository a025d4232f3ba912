import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { NotificationKind } from '@keytrail/contracts';
import {
  addEvent,
  holderWanted,
  keyDelivered,
  keyRequestDue,
  keyRequestEnded,
  notificationRequested,
} from '@keytrail/events';
import type { Transaction } from '@keytrail/storage';
import { currentTraceparent } from '@keytrail/telemetry';
import type { DeviceId } from './domain/device.ts';
import type { KeyRequest } from './domain/key-request.ts';

const wantedHoldersAtMost = 100;

/** A hint that the request should be looked at now. */
export function announceDue(tx: Transaction, request: KeyRequest): Promise<void> {
  const { keyRequestId, attempt } = request;
  return addEvent(tx, keyRequestDue, { keyRequestId, attempt }, { aggregate: keyRequestId });
}

export function announceOffer(tx: Transaction, request: KeyRequest, to: readonly DeviceId[]): Promise<void> {
  return notify(tx, request, NotificationKind.KEY_OFFERED, to);
}

export function announceHolderWanted(
  tx: Transaction,
  { keyRequestId, conversationId }: KeyRequest,
  holders: readonly DeviceId[],
): Promise<void> {
  return addEvent(
    tx,
    holderWanted,
    { keyRequestId, conversationId, holders: holders.slice(0, wantedHoldersAtMost).map((holder) => ({ ...holder })) },
    { aggregate: keyRequestId },
  );
}

export async function announceDelivery(tx: Transaction, request: KeyRequest, sealer: DeviceId): Promise<void> {
  const { keyRequestId, conversationId, sessionId, requester, acceptedAttempt = 0, requestedAt } = request;
  await notify(tx, request, NotificationKind.KEY_DELIVERED, [requester]);
  await addEvent(
    tx,
    keyDelivered,
    {
      keyRequestId,
      conversationId,
      sessionId,
      requester: { ...requester },
      sealer: { ...sealer },
      attempt: acceptedAttempt,
      requestedAt: timestampFromDate(requestedAt),
    },
    { aggregate: keyRequestId },
  );
}

/** Tells a requester that its request ended without a key. */
export async function announceEnd(tx: Transaction, request: KeyRequest): Promise<void> {
  const { keyRequestId, requester, state, endedBecause = '' } = request;
  await notify(tx, request, NotificationKind.KEY_REQUEST_ENDED, [requester]);
  await addEvent(
    tx,
    keyRequestEnded,
    { keyRequestId, requester: { ...requester }, state, because: endedBecause },
    { aggregate: keyRequestId },
  );
}

function notify(
  tx: Transaction,
  { keyRequestId, conversationId, sessionId }: KeyRequest,
  kind: NotificationKind,
  devices: readonly DeviceId[],
): Promise<void> {
  return addEvent(
    tx,
    notificationRequested.session,
    {
      devices: devices.map((device) => ({ ...device })),
      notification: { kind, keyRequestId, conversationId, sessionId, traceparent: currentTraceparent() },
    },
    { aggregate: keyRequestId },
  );
}
