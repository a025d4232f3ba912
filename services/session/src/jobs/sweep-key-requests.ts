import { type Rounds, startRounds } from '@keytrail/events';
import { claimLeaseMs, type Dispatcher, dispatchClaimed } from '../dispatch-key-request.ts';
import { claimDueKeyRequests } from '../store/key-requests.ts';

const requestsAtOnce = 200;

/**
 * Looks at every request whose time has come. Events only make it sooner: with all of them lost, this alone brings each request to its end.
 * Replicas share the work, as a claimed request is not due for the others.
 */
export function startSweep(dispatcher: Dispatcher, everyMs: number): Rounds {
  return startRounds({
    what: 'the sweep of key requests',
    everyMs,
    log: dispatcher.log,
    round: () => sweepKeyRequests(dispatcher),
  });
}

/** Takes the next step of requests that are due. Whether there may be more. */
export async function sweepKeyRequests(dispatcher: Dispatcher): Promise<boolean> {
  const { db } = dispatcher;
  const requests = await claimDueKeyRequests(db, requestsAtOnce, claimLeaseMs);
  await dispatchClaimed(dispatcher, requests);
  return requests.length === requestsAtOnce;
}
