import { type Database, isConnectionFailure } from '@keytrail/storage';
import { DatabaseAway } from '@keytrail/telemetry';
import type { DatabaseCheck, Outcome } from './check.ts';

/** The longest that the statement of one check may take, in ms. */
export const checkStatementTimeoutMs = 3_000;

/**
 * Runs a check's statement in a transaction that can only read, and judges its rows. Past the gate of migrations: a database that does
 * not fit the build is looked at too. Throws what the database says, or DatabaseAway.
 */
export async function runDatabaseCheck(
  db: Pick<Database, 'pool'>,
  { statement, values = () => [], judge }: DatabaseCheck,
  subjects: readonly string[] = [],
): Promise<Outcome> {
  return judge(await readRows(db, statement.text, [...values(subjects)]));
}

/** The rows of one statement, in a transaction that can only read. Throws what the database says, or DatabaseAway. */
export async function readRows(
  { pool }: Pick<Database, 'pool'>,
  text: string,
  values: readonly unknown[],
): Promise<unknown[]> {
  let failure: Error | undefined;
  const client = await pool.connect().catch((error: Error) => {
    throw isConnectionFailure(error) ? new DatabaseAway(error) : error;
  });
  try {
    await client.query(`BEGIN READ ONLY; SET LOCAL statement_timeout = ${checkStatementTimeoutMs}`);
    const { rows } = await client.query(text, [...values]);
    await client.query('COMMIT');
    return rows;
  } catch (error) {
    // A connection whose transaction may be open is not given back.
    failure = error as Error;
    throw isConnectionFailure(error) ? new DatabaseAway(failure) : failure;
  } finally {
    client.release(failure);
  }
}
