import { type Statement, statement } from '@keytrail/storage';
import type { Outcome } from '../check.ts';

interface Row {
  readonly writerBuild: string;
  readonly lastAt: Date;
}

/** The builds in the newest rows of tables, and when each last wrote. `from`: SELECTs of writer_build and written_at. */
export function writersStatement(name: string, from: string): Statement {
  return statement(
    name,
    `SELECT writer_build AS "writerBuild", max(written_at) AS "lastAt" FROM (${from}) AS written GROUP BY writer_build ORDER BY 2 DESC LIMIT 50`,
  );
}

/** Only names the builds: which of them run, the doctor knows. */
export function judgeWriters(rows: readonly Row[]): Outcome {
  return {
    status: 'ok',
    summary: rows[0] ? `the newest rows are by ${rows[0].writerBuild}` : 'there are no rows',
    subjects: rows.map(({ writerBuild, lastAt }) => `${writerBuild} ${lastAt.toISOString()}`),
  };
}
