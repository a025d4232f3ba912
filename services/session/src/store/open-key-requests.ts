import { type Queryable, statement } from '@keytrail/storage';
import type { OpenState } from '../domain/key-request.ts';

export interface OpenKeyRequests {
  readonly state: OpenState;
  readonly requests: number;
  /** Age of the oldest, in s. */
  readonly oldestS: number;
  /** For how long the one that is due longest has been due, in s; 0 when none is. */
  readonly overdueS: number;
}

// By the index of those that are due, of up to 100,000.
const read = statement(
  'open_key_requests',
  `SELECT state, count(*)::int AS requests,
     greatest(0, extract(epoch FROM clock_timestamp() - min(requested_at)))::float8 AS "oldestS",
     greatest(0, extract(epoch FROM clock_timestamp() - min(next_attempt_at)))::float8 AS "overdueS"
   FROM (SELECT state, requested_at, next_attempt_at FROM key_requests WHERE state IN ('WAITING_FOR_HOLDER', 'OFFERED')
         ORDER BY next_attempt_at LIMIT 100000) AS open GROUP BY state`,
);

/** What is open in the whole database, by state; without the states that no request is in. */
export function readOpenKeyRequests(db: Queryable): Promise<OpenKeyRequests[]> {
  return db.query<OpenKeyRequests>(read, []);
}
