import { type Database, type RestoreFence, statement } from '@keytrail/storage';
import { databaseCheck, type Probe } from '../check.ts';
import { runDatabaseCheck } from '../run-database-check.ts';

interface Row {
  readonly incarnation: string;
  readonly position: bigint;
  readonly place: string;
  readonly here: string;
  readonly closed: boolean;
  /** Restores that no operator has accepted, and what is known of the newest. */
  readonly restores: bigint;
  readonly because: string | null;
  readonly noticedAt: Date | null;
  readonly handledAt: Date | null;
}

/** That the database did not go back in time, as far as it knows itself; the fence of the running process compares with what is known outside. */
export const databaseRestored = databaseCheck<Row>({
  code: 'DATABASE_RESTORED',
  statement: statement(
    'check_database_restored',
    `SELECT f.incarnation, f.position, f.place, database_place() AS here, f.closed, coalesce(r.restores, 0) AS restores, r.because,
            r.noticed_at AS "noticedAt", r.handled_at AS "handledAt"
       FROM restore_fence f
       LEFT JOIN LATERAL (SELECT count(*) OVER () AS restores, because, noticed_at, handled_at FROM database_restores
                           WHERE accepted_at IS NULL ORDER BY noticed_at DESC LIMIT 1) r ON true`,
  ),
  judge([row]) {
    if (!row) return { status: 'unknown', summary: 'the database has no restore_fence', hint: 'see MIGRATIONS' };
    const { incarnation, position, place, here, closed, restores, because, noticedAt, handledAt } = row;
    const evidence = {
      incarnation,
      position,
      place: here,
      ...(because !== null && {
        because,
        noticedAt: noticedAt?.toISOString() ?? '',
        handledAt: handledAt?.toISOString() ?? '',
      }),
    };
    if (closed)
      return {
        status: 'fail',
        summary: `the database went back in time (${because}), and that is not dealt with yet`,
        evidence,
        hint: 'start the service, with NATS; its log says what keeps it: docs/runbooks/database-restored.md',
      };
    if (place !== here)
      return {
        status: 'fail',
        summary: 'the database is at another place than it knows, and no process has looked at it since',
        evidence: { ...evidence, known: place },
        hint: 'start the service: it finds out whether something was lost',
      };
    if (restores > 0n)
      return {
        status: 'fail',
        summary: `the database went back in time: ${because}`,
        evidence: { ...evidence, restores },
        hint: 'go through docs/runbooks/database-restored.md, then keytrail fence accept',
      };
    return { status: 'ok', summary: `the database is at position ${position} of one history`, evidence };
  },
});

/** The same, with what the fence of this process found when it compared with what is known outside the database. */
export function probeDatabaseRestored(db: Database, fence: RestoreFence | undefined): Probe {
  return {
    code: 'DATABASE_RESTORED',
    async run() {
      const outcome = await runDatabaseCheck(db, databaseRestored);
      if (!fence || outcome.status !== 'ok') return outcome;
      if (!fence.pass)
        return {
          ...outcome,
          status: 'fail',
          summary: `whether the database went back in time is not known: ${fence.state}`,
          hint: 'start NATS: what is known outside the database is there',
        };
      if (!fence.outsideKnown)
        return {
          ...outcome,
          status: 'warn',
          summary: 'the store outside the database (NATS) does not answer: this process goes by what it saw last',
          hint: 'start NATS; do not restart the service before: it would have seen nothing, and serve nothing until NATS answers',
        };
      return outcome;
    },
  };
}
