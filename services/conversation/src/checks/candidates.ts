import { databaseCheck } from '@keytrail/diagnosis';
import { statement } from '@keytrail/storage';

interface Row {
  /** Counted up to 10,000. */
  readonly candidates: number;
  readonly oldestMs: number;
  readonly oldest: string | null;
  readonly writerBuild: string | null;
}

export const candidateWarnMs = 15 * 60_000;
export const candidateFailMs = 60 * 60_000;

/** That sessions which were never committed are given up. Reads an index by age. */
export const stuckCandidates = databaseCheck<Row>({
  code: 'CANDIDATES',
  statement: statement(
    'check_candidates',
    `SELECT (SELECT count(*)::int FROM (SELECT FROM candidates LIMIT 10000) AS few) AS candidates,
            coalesce(extract(epoch FROM now() - o.started_at) * 1000, 0)::float8 AS "oldestMs",
            o.conversation_id || '/' || o.session_id AS oldest, o.writer_build AS "writerBuild"
       FROM (SELECT) AS one LEFT JOIN LATERAL (SELECT * FROM candidates ORDER BY started_at LIMIT 1) AS o ON true`,
  ),
  judge([row]) {
    const { candidates = 0, oldestMs = 0, oldest = null, writerBuild = null } = row ?? {};
    if (oldestMs < candidateWarnMs)
      return {
        status: 'ok',
        summary: `${candidates} sessions are being committed, none for long`,
        evidence: { candidates },
      };
    return {
      status: oldestMs < candidateFailMs ? 'warn' : 'fail',
      summary: `a session has been neither committed nor given up for ${Math.round(oldestMs / 60_000)} min`,
      evidence: { candidates, ...(oldest && { oldest }), ...(writerBuild && { writerBuild }) },
      hint: 'the reconciliation of conversation does not get on: session cannot be asked to discard it (see SERVICES_REACHABLE), or its log says why',
    };
  },
});
