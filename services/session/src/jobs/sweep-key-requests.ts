import { context, ROOT_CONTEXT } from '@keytrail/telemetry';
import { claimLeaseMs, type Dispatcher, dispatchKeyRequest } from '../dispatch-key-request.ts';
import { claimDueKeyRequests } from '../store/key-requests.ts';

export interface Sweep {
  /** Takes up no more requests, and resolves when those at hand are dealt with. */
  stop(): Promise<void>;
}

const requestsAtOnce = 32;

/**
 * Looks at every request whose time has come. Events only make it sooner: with all of them lost, this alone brings each request to its end.
 * Replicas share the work, as a claimed request is not due for the others.
 */
export function startSweep(dispatcher: Dispatcher, everyMs: number): Sweep {
  const { db, log } = dispatcher;
  const stopping = new AbortController();
  let wake = () => {};

  async function sweepOnce(): Promise<void> {
    for (;;) {
      const requests = await claimDueKeyRequests(db, requestsAtOnce, claimLeaseMs);
      const looks = await Promise.allSettled(requests.map((request) => dispatchKeyRequest(dispatcher, request)));
      for (const look of looks)
        if (look.status === 'rejected') log.error({ err: look.reason }, 'a key request could not be dispatched');
      if (requests.length < requestsAtOnce || stopping.signal.aborted) return;
    }
  }

  async function run(): Promise<void> {
    while (!stopping.signal.aborted) {
      try {
        await sweepOnce();
      } catch (err) {
        log.warn({ err }, 'the sweep of key requests failed; it tries again');
      }
      if (stopping.signal.aborted) return;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, everyMs);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  // The loop belongs to no request, whoever starts it.
  const finished = context.with(ROOT_CONTEXT, run);
  return {
    async stop() {
      stopping.abort();
      wake();
      await finished;
    },
  };
}
