import { statement } from '@keytrail/storage';
import { type DatabaseCheck, databaseCheck, type Outcome } from '../check.ts';
import { newestPages } from './sampling.ts';

interface Row {
  readonly writerBuild: string;
  readonly lastAt: Date;
}

/** The builds in the newest rows of tables, and when each last wrote. `tables`: of each, the column that says when a row was written. */
export function writersCheck(service: string, tables: Readonly<Record<string, string>>): DatabaseCheck {
  const newest = Object.entries(tables).map(
    ([table, writtenAt]) => `SELECT writer_build, ${writtenAt} AS written_at FROM ${table} WHERE ${newestPages(table)}`,
  );
  return databaseCheck<Row>({
    code: 'OLD_BUILD_WRITES',
    statement: statement(
      `check_${service.replaceAll('-', '_')}_writers`,
      `SELECT writer_build AS "writerBuild", max(written_at) AS "lastAt" FROM (${newest.join(' UNION ALL ')}) AS written
       GROUP BY writer_build ORDER BY 2 DESC LIMIT 50`,
    ),
    judge: judgeWriters,
  });
}

/** Only names the builds: which of them run, the doctor knows. */
export function judgeWriters(rows: readonly Row[]): Outcome {
  return {
    status: 'ok',
    summary: rows[0] ? `the newest rows are by ${rows[0].writerBuild}` : 'there are no rows',
    subjects: rows.map(({ writerBuild, lastAt }) => `${writerBuild} ${lastAt.toISOString()}`),
  };
}
