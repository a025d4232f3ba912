import { statement } from '@keytrail/storage';
import { type DatabaseCheck, databaseCheck, type Outcome } from '../check.ts';
import { writersOf } from './sampling.ts';

interface Row {
  readonly writerBuild: string;
  readonly lastAt: Date;
}

/**
 * The builds that wrote into tables, and when each last did. `tables`: of each, the column that says when a row was written; all but small ones
 * need an index on (writer_build, that column).
 */
export function writersCheck(service: string, tables: Readonly<Record<string, string>>): DatabaseCheck {
  const writers = Object.entries(tables).map(([table, writtenAt]) => writersOf(table, writtenAt));
  return databaseCheck<Row>({
    code: 'OLD_BUILD_WRITES',
    statement: statement(
      `check_${service.replaceAll('-', '_')}_writers`,
      `SELECT writer_build AS "writerBuild", max(last_at) AS "lastAt" FROM (${writers.join(' UNION ALL ')}) AS written
       GROUP BY writer_build ORDER BY 2 DESC LIMIT 50`,
    ),
    judge: judgeWriters,
  });
}

/** Only names the builds: which of them run, the doctor knows. */
export function judgeWriters(rows: readonly Row[]): Outcome {
  return {
    status: 'ok',
    summary: rows[0] ? `the newest row is by ${rows[0].writerBuild}` : 'there are no rows',
    subjects: rows.map(({ writerBuild, lastAt }) => `${writerBuild} ${lastAt.toISOString()}`),
  };
}
