import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { NotificationKind, type NotificationSchema } from '@keytrail/contracts';
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
import { type DeviceId, deviceKey } from './domain/device.ts';
import type { KeyRequest } from './domain/key-request.ts';
import { measureEnd } from './key-request-metrics.ts';

const wantedHoldersAtMost = 100;

/** A hint that the request should be looked at now; whatever else of its requester is due is looked at with it. */
export function announceDue(tx: Transaction, request: Pick<KeyRequest, 'keyRequestId' | 'attempt'>): Promise<void> {
  const { keyRequestId, attempt } = request;
  return addEvent(tx, keyRequestDue, { keyRequestId, attempt }, { aggregate: keyRequestId });
}

export interface OfferedNow {
  readonly request: KeyRequest;
  readonly to: DeviceId;
}

/** Tells holders what they are offered: each of one request, or how many there are. */
export async function announceOffers(tx: Transaction, offers: readonly OfferedNow[]): Promise<void> {
  const ofHolder = Map.groupBy(offers, ({ to }) => deviceKey(to));
  const alone = offers.filter(({ to }) => ofHolder.get(deviceKey(to))?.length === 1);
  for (const [keyRequestId, ofRequest] of Map.groupBy(alone, ({ request }) => request.keyRequestId)) {
    const [first] = ofRequest;
    if (!first) continue;
    const { conversationId, sessionId, attempt, requester } = first.request;
    await notify(
      tx,
      keyRequestId,
      ofRequest.map(({ to }) => to),
      {
        kind: NotificationKind.KEY_OFFERED,
        keyRequestId,
        conversationId,
        sessionId,
        attempt,
        requester: { ...requester },
        offers: 1,
      },
    );
  }
  for (const many of ofHolder.values()) {
    const [first] = many;
    if (first && many.length > 1)
      await notify(tx, first.request.keyRequestId, [first.to], {
        kind: NotificationKind.KEY_OFFERED,
        offers: many.length,
      });
  }
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

/** Deliveries to one device that are told one by one; of more at once, the device is told that it has changes to pull. */
const deliveriesNamedAtMost = 16;

/** Tells that requests of one device were fulfilled. */
export async function announceDeliveries(
  tx: Transaction,
  requests: readonly KeyRequest[],
  sealer: DeviceId,
): Promise<void> {
  const [first] = requests;
  if (first && requests.length > deliveriesNamedAtMost)
    await notify(tx, first.keyRequestId, [first.requester], { kind: NotificationKind.KEY_DELIVERED });
  for (const request of requests) {
    measureEnd(tx, request);
    const { keyRequestId, conversationId, sessionId, requester, acceptedAttempt = 0, requestedAt } = request;
    if (requests.length <= deliveriesNamedAtMost)
      await notify(tx, keyRequestId, [requester], {
        kind: NotificationKind.KEY_DELIVERED,
        keyRequestId,
        conversationId,
        sessionId,
      });
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
}

/** Tells a requester that its request ended without a key. */
export async function announceEnd(tx: Transaction, request: KeyRequest): Promise<void> {
  const { keyRequestId, conversationId, sessionId, requester, state, endedBecause = '' } = request;
  measureEnd(tx, request);
  await notify(tx, keyRequestId, [requester], {
    kind: NotificationKind.KEY_REQUEST_ENDED,
    keyRequestId,
    conversationId,
    sessionId,
  });
  await addEvent(
    tx,
    keyRequestEnded,
    { keyRequestId, requester: { ...requester }, state, because: endedBecause },
    { aggregate: keyRequestId },
  );
}

function notify(
  tx: Transaction,
  aggregate: string,
  devices: readonly DeviceId[],
  notification: MessageInitShape<typeof NotificationSchema>,
): Promise<void> {
  return addEvent(
    tx,
    notificationRequested.session,
    {
      devices: devices.map((device) => ({ ...device })),
      notification: { ...notification, traceparent: currentTraceparent() },
    },
    { aggregate },
  );
}
