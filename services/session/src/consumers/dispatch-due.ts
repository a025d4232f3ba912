import { type Consumer, consumers, type EventBus, keyRequestDue, on, startConsumer } from '@keytrail/events';
import { claimLeaseMs, type Dispatcher, dispatchKeyRequest } from '../dispatch-key-request.ts';
import { claimKeyRequest } from '../store/key-requests.ts';

/** Looks at requests as soon as they are due. The event is a hint: what counts is the row, and an event of the past finds nothing due. */
export function dispatchDueRequests(dispatcher: Dispatcher, bus: EventBus): Consumer {
  const { db, log } = dispatcher;
  return startConsumer({
    bus,
    db,
    log,
    consumer: consumers.sessionDispatcher,
    handlers: on(keyRequestDue, async ({ keyRequestId }) => {
      const request = await claimKeyRequest(db, keyRequestId, claimLeaseMs);
      if (request) await dispatchKeyRequest(dispatcher, request);
    }),
  });
}
