import { type Consumer, consumers, deviceAttached, type EventBus, on, startConsumer } from '@keytrail/events';
import { claimLeaseMs, type Dispatcher, dispatchKeyRequest } from '../dispatch-key-request.ts';
import type { DeviceId } from '../domain/device.ts';
import { claimKeyRequestsForHolder } from '../store/key-requests.ts';

const requestsAtOnce = 50;

/** When a device attaches, the requests that wait for a holder and that it could fulfil go on at once. */
export function resumeForHolder(dispatcher: Dispatcher, bus: EventBus): Consumer {
  const { db, log } = dispatcher;
  return startConsumer({
    bus,
    db,
    log,
    consumer: consumers.sessionPresence,
    handlers: on(deviceAttached, async ({ device }) => {
      if (!device) return;
      await resumeRequests(dispatcher, device, requestsAtOnce);
    }),
  });
}

/**
 * Looks once at each request that waits and of whose session the device has an envelope, `atOnce` claimed at a time. One that still waits
 * after the look (the device is not entitled, declined before, went away) is not taken up again: pages go forward by key.
 */
export async function resumeRequests(dispatcher: Dispatcher, holder: DeviceId, atOnce: number): Promise<void> {
  let after: string | undefined;
  for (;;) {
    const requests = await claimKeyRequestsForHolder(dispatcher.db, holder, { after, most: atOnce }, claimLeaseMs);
    for (const request of requests) await dispatchKeyRequest(dispatcher, request);
    after = requests.at(-1)?.keyRequestId;
    if (requests.length < atOnce) return;
  }
}
