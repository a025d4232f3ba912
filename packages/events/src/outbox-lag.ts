import { type Database, statement } from '@keytrail/storage';
import { meter } from '@keytrail/telemetry';

export interface OutboxLag {
  /** Events that wait to be published; counted up to 100,000. */
  readonly pending: number;
  /** Since the oldest of them was written; 0 without one. */
  readonly oldestAgeMs: number;
}

const read = statement(
  'outbox_lag',
  `SELECT (SELECT count(*)::int FROM (SELECT 1 FROM outbox LIMIT 100000) AS waiting) AS pending,
          coalesce((SELECT greatest(0, extract(epoch FROM clock_timestamp() - created_at) * 1000)::float8
                    FROM outbox ORDER BY seq LIMIT 1), 0) AS "oldestAgeMs"`,
);

/** How far publishing is behind in the whole database, whoever relays. */
export async function readOutboxLag(db: Database): Promise<OutboxLag> {
  const [lag] = await db.query<OutboxLag>(read, []);
  return lag ?? { pending: 0, oldestAgeMs: 0 };
}

/** Reports the lag as metrics, at each export; returns how to stop that. Every replica of a service reports the same. */
export function reportOutboxLag(db: Database): () => void {
  const pending = meter().createObservableGauge('keytrail.outbox.pending', {
    description: 'Events that wait to be published, counted up to 100,000',
    unit: '{event}',
  });
  const oldestAge = meter().createObservableGauge('keytrail.outbox.oldest_age', {
    description: 'Since the oldest event that waits was written',
    unit: 'ms',
  });
  const observe: Parameters<ReturnType<typeof meter>['addBatchObservableCallback']>[0] = async (result) => {
    // While the database is away there is nothing to tell, and that is told elsewhere.
    const lag = await readOutboxLag(db).catch(() => undefined);
    if (!lag) return;
    result.observe(pending, lag.pending);
    result.observe(oldestAge, lag.oldestAgeMs);
  };
  meter().addBatchObservableCallback(observe, [pending, oldestAge]);
  return () => meter().removeBatchObservableCallback(observe, [pending, oldestAge]);
}
