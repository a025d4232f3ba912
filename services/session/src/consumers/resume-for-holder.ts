import { type Consumer, consumers, deviceAttached, type EventBus, on, startConsumer } from '@keytrail/events';
import { claimLeaseMs, type Dispatcher, dispatchKeyRequest } from '../dispatch-key-request.ts';
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
      for (;;) {
        const requests = await claimKeyRequestsForHolder(db, device, requestsAtOnce, claimLeaseMs);
        for (const request of requests) await dispatchKeyRequest(dispatcher, request);
        if (requests.length < requestsAtOnce) return;
      }
    }),
  });
}
