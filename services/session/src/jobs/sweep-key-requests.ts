import { type Rounds, startRounds } from '@keytrail/events';
import { claimLeaseMs, type Dispatcher, dispatchKeyRequest } from '../dispatch-key-request.ts';
import { claimDueKeyRequests } from '../store/key-requests.ts';

const requestsAtOnce = 32;

/**
 * Looks at every request whose time has come. Events only make it sooner: with all of them lost, this alone brings each request to its end.
 * Replicas share the work, as a claimed request is not due for the others.
 */
export function startSweep(dispatcher: Dispatcher, everyMs: number): Rounds {
  const { db, log } = dispatcher;
  return startRounds({
    what: 'the sweep of key requests',
    everyMs,
    log,
    async round() {
      const requests = await claimDueKeyRequests(db, requestsAtOnce, claimLeaseMs);
      const looks = await Promise.allSettled(requests.map((request) => dispatchKeyRequest(dispatcher, request)));
      for (const look of looks)
        if (look.status === 'rejected') log.error({ err: look.reason }, 'a key request could not be dispatched');
      return requests.length === requestsAtOnce;
    },
  });
}
