import { statement } from '@keytrail/storage';
import { databaseCheck } from '../check.ts';

interface Row {
  /** Counted up to 100,000. */
  readonly pending: number;
  readonly oldestMs: number;
  readonly subject: string | null;
}

export const outboxWarnMs = 10_000;
export const outboxFailMs = 60_000;

/** That events leave the outbox. */
export const outboxCheck = databaseCheck<Row>({
  code: 'OUTBOX',
  statement: statement(
    'check_outbox',
    `SELECT (SELECT count(*)::int FROM (SELECT FROM outbox LIMIT 100000) AS waiting) AS pending,
            coalesce((SELECT extract(epoch FROM clock_timestamp() - created_at) * 1000 FROM outbox ORDER BY seq LIMIT 1), 0)::float8 AS "oldestMs",
            (SELECT subject FROM outbox ORDER BY seq LIMIT 1) AS subject`,
  ),
  judge([row]) {
    const { pending = 0, oldestMs = 0, subject = null } = row ?? {};
    const seconds = Math.round(oldestMs / 1000);
    if (oldestMs < outboxWarnMs)
      return { status: 'ok', summary: `${pending} events wait, none for long`, evidence: { pending } };
    return {
      status: oldestMs < outboxFailMs ? 'warn' : 'fail',
      summary: `${pending === 100_000 ? 'more than 100,000' : pending} events wait to be published, the oldest for ${seconds} s`,
      evidence: { pending, oldestSeconds: seconds, ...(subject && { oldestSubject: subject }) },
      hint: 'NATS is away, its store is full, or no process of the service relays: see NATS, STREAMS and the log (“events could not be published yet”)',
    };
  },
});
