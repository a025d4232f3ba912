import { startGauges } from '@keytrail/events';
import type { Database, Transaction } from '@keytrail/storage';
import { attr, count, type Logger, measure, metricAttr } from '@keytrail/telemetry';
import { type KeyRequest, openStates } from './domain/key-request.ts';
import { readOpenKeyRequests } from './store/open-key-requests.ts';

function secondsBetween(from: Date, to: Date): number {
  return Math.max(0, (to.getTime() - from.getTime()) / 1000);
}

/** Counts requests that are stored when the transaction commits. */
export function countMade(tx: Transaction, requests: readonly KeyRequest[]): void {
  tx.afterCommit(() => {
    for (const { kind } of requests) count('keyRequestsMade', 1, { [metricAttr.keyRequestKind]: kind });
  });
}

/** Measures the way of a request to its first offer. */
export function measureFirstOffer(tx: Transaction, { requestedAt }: KeyRequest, offeredAt: Date): void {
  tx.afterCommit(() => measure('timeToOffer', secondsBetween(requestedAt, offeredAt)));
}

/** Measures the whole life of a request that ends now, with a key or without one. */
export function measureEnd(tx: Transaction, request: KeyRequest): void {
  const { requestedAt, endedAt, state } = request;
  tx.afterCommit(() => {
    const seconds = secondsBetween(requestedAt, endedAt ?? new Date());
    measure('timeToKey', seconds, { [metricAttr.keyRequestOutcome]: state });
    if (wasNeverAnswered(request)) measure('offerToKey', seconds, { [metricAttr.keyRequestOutcome]: state });
  });
}

/** The objective counts these as late: else it would be met while no holder seals at all. Not those that end before any offer, for envelopes rejected before. */
function wasNeverAnswered({ endedBecause, attempt, attemptBase }: KeyRequest): boolean {
  return endedBecause === 'attempts_exhausted' && attempt > attemptBase;
}

/** Measures what a holder took, from its offer to its key. */
export function measureHolder(tx: Transaction, offeredAt: Date, { endedAt, state }: KeyRequest): void {
  tx.afterCommit(() =>
    measure('offerToKey', secondsBetween(offeredAt, endedAt ?? new Date()), { [metricAttr.keyRequestOutcome]: state }),
  );
}

export type PostponedBecause = 'peer_away' | 'not_heard' | 'fault';

/** Counts looks at requests that could not be made: each is due again so soon that it is never overdue for long. */
export function countPostponed(requests: number, because: PostponedBecause): void {
  if (requests > 0) count('keyRequestsPostponed', requests, { [metricAttr.postponedBecause]: because });
}

/** Tells how many requests are open, how old the oldest is, and whether anybody looks at those that are due. */
export function startKeyRequestGauges(
  db: Database,
  { everyMs, log }: { readonly everyMs: number; readonly log: Logger },
): { stop(): Promise<void> } {
  return startGauges({
    what: 'the look at open key requests',
    gauges: ['openKeyRequests', 'oldestOpenKeyRequest', 'overdueKeyRequests'],
    everyMs,
    log,
    async read() {
      const open = await readOpenKeyRequests(db);
      return (observe) => {
        for (const state of openStates) {
          const found = open.find((each) => each.state === state);
          observe('openKeyRequests', found?.requests ?? 0, { [attr.keyRequestState]: state });
          observe('oldestOpenKeyRequest', found?.oldestS ?? 0, { [attr.keyRequestState]: state });
        }
        observe('overdueKeyRequests', Math.max(0, ...open.map(({ overdueS }) => overdueS)));
      };
    },
  });
}
