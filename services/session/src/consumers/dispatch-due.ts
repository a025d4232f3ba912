import { type Consumer, consumers, type EventBus, keyRequestDue, on, startConsumer } from '@keytrail/events';
import { claimLeaseMs, type Dispatcher, dispatchKeyRequests } from '../dispatch-key-request.ts';
import { claimDueWith } from '../store/key-requests.ts';

/** Of one requester: as many as one device may have open by default are looked at in a few rounds. */
const requestsAtOnce = 200;

/** Looks at requests as soon as they are due. The event is a hint: what counts is the row, and an event of the past finds nothing due. */
export function dispatchDueRequests(dispatcher: Dispatcher, bus: EventBus): Consumer {
  const { db, log } = dispatcher;
  return startConsumer({
    bus,
    db,
    log,
    consumer: consumers.sessionDispatcher,
    handlers: on(keyRequestDue, async ({ keyRequestId }) => {
      await dispatchKeyRequests(dispatcher, await claimDueWith(db, keyRequestId, requestsAtOnce, claimLeaseMs));
    }),
  });
}
