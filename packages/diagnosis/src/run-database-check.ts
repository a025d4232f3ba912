import { type Database, statement } from '@keytrail/storage';
import type { DatabaseCheck, Outcome } from './check.ts';

const readOnly = statement('check_reads_only', 'SET TRANSACTION READ ONLY');
const bound = statement('check_is_bounded', "SELECT set_config('statement_timeout', $1, true)");

/** The longest that the statement of one check may take, in ms. */
export const checkStatementTimeoutMs = 3_000;

/** Runs a check's statement in a transaction that can only read, and judges its rows. Throws what the database says. */
export async function runDatabaseCheck(
  db: Database,
  { statement: reading, values = () => [], judge }: DatabaseCheck,
  subjects: readonly string[] = [],
): Promise<Outcome> {
  const rows = await db.asItIs.transaction(async (tx) => {
    await tx.query(readOnly, []);
    await tx.query(bound, [String(checkStatementTimeoutMs)]);
    return tx.query(reading, values(subjects));
  });
  return judge(rows);
}
