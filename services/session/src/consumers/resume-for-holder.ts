import { type Consumer, consumers, deviceAttached, type EventBus, on, startConsumer } from '@keytrail/events';
import { claimLeaseMs, type Dispatcher, dispatchClaimed } from '../dispatch-key-request.ts';
import type { DeviceId } from '../domain/device.ts';
import { claimDueKeyRequests, hurryKeyRequestsForHolder } from '../store/key-requests.ts';

const requestsAtOnce = 200;

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
 * Makes due what waits and of whose session the device has an envelope, then looks at what is due, fairly, `atOnce` claimed at a time. One
 * that still waits after its look (the device is not entitled, declined before, went away) is due again only later.
 */
export async function resumeRequests(dispatcher: Dispatcher, holder: DeviceId, atOnce: number): Promise<void> {
  if ((await hurryKeyRequestsForHolder(dispatcher.db, holder)) === 0) return;
  for (;;) {
    const requests = await claimDueKeyRequests(dispatcher.db, atOnce, claimLeaseMs);
    await dispatchClaimed(dispatcher, requests);
    if (requests.length < atOnce) return;
  }
}
