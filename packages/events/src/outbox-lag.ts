import { type Database, statement } from '@keytrail/storage';

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
