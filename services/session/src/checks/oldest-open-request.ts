import { databaseCheck } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  /** Counted up to 10,000. */
  readonly open: number;
  readonly waiting: number;
  readonly offered: number;
  /** Of the oldest of them; 0 without one. */
  readonly oldestMs: number;
  readonly oldestId: string | null;
  readonly oldestState: string | null;
  /** By how much the next look at one of them is late; 0 when none is. */
  readonly overdueMs: number;
  /** Age of the oldest that no look found a holder of, or that it has none: a look at it could not be made yet. 0 without one. */
  readonly neverSeenMs: number;
}

export const openWarnMs = 60 * 60_000;
export const overdueFailMs = 60_000;

/** That open key requests are looked at, and do not stay open for long. */
export const oldestOpenRequest = databaseCheck<Row>({
  code: 'OLDEST_OPEN_REQUEST',
  statement: statement(
    'check_oldest_open_request',
    `WITH due AS MATERIALIZED (
       SELECT key_request_id, state, holders, requested_at, next_attempt_at FROM key_requests
        WHERE state IN ('WAITING_FOR_HOLDER', 'OFFERED') ORDER BY next_attempt_at LIMIT 10000
     ), oldest AS (SELECT * FROM due ORDER BY requested_at LIMIT 1)
     SELECT count(*)::int AS open,
            count(*) FILTER (WHERE state = 'WAITING_FOR_HOLDER')::int AS waiting,
            count(*) FILTER (WHERE state = 'OFFERED')::int AS offered,
            coalesce((SELECT extract(epoch FROM now() - requested_at) * 1000 FROM oldest), 0)::float8 AS "oldestMs",
            (SELECT key_request_id::text FROM oldest) AS "oldestId",
            (SELECT state FROM oldest) AS "oldestState",
            greatest(0, coalesce(max(extract(epoch FROM now() - next_attempt_at) * 1000), 0))::float8 AS "overdueMs",
            coalesce(max(extract(epoch FROM now() - requested_at) * 1000) FILTER (WHERE holders = 0), 0)::float8 AS "neverSeenMs"
       FROM due`,
  ),
  judge([row]) {
    if (!row) return { status: 'unknown', summary: 'the database told nothing' };
    const { open, waiting, offered, oldestMs, oldestId, oldestState, overdueMs, neverSeenMs } = row;
    const evidence = {
      open,
      waitingForHolder: waiting,
      offered,
      oldestSeconds: Math.round(oldestMs / 1000),
      ...(oldestId && { oldest: oldestId }),
    };
    if (overdueMs >= overdueFailMs)
      return {
        status: 'fail',
        summary: `key requests are not looked at: one should have been ${Math.round(overdueMs / 1000)} s ago`,
        evidence: { ...evidence, overdueSeconds: Math.round(overdueMs / 1000) },
        hint: 'no process of session sweeps: see SERVICES_REACHABLE and its log (“the sweep of key requests failed”)',
      };
    // It is due again a second after each look that could not be made, and so never overdue.
    if (neverSeenMs >= overdueFailMs)
      return {
        status: 'fail',
        summary: `key requests cannot be looked at: one waits for its first look for ${Math.round(neverSeenMs / 1000)} s`,
        evidence: { ...evidence, waitsForFirstLookSeconds: Math.round(neverSeenMs / 1000) },
        hint: 'session cannot ask a peer (SERVICES_REACHABLE), or its events do not get out (NATS, OUTBOX); keytrail_key_requests_postponed_total says which',
      };
    if (oldestMs >= openWarnMs)
      return {
        status: 'warn',
        summary: `${open} key requests are open, the oldest for ${Math.round(oldestMs / 60_000)} min (${oldestState})`,
        evidence,
        hint: `keytrail requests show ${oldestId}: no device that has the key has been online since; is holder_wanted turned into pushes?`,
      };
    return { status: 'ok', summary: `${open} key requests are open, none for long`, evidence };
  },
});
