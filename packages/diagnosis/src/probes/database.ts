import { type Database, statement } from '@keytrail/storage';
import { DatabaseAway } from '@keytrail/telemetry';
import { databaseCheck, type Outcome, type Probe } from '../check.ts';
import { runDatabaseCheck } from '../run-database-check.ts';

interface Row {
  readonly version: string;
  readonly recovering: boolean;
  /** What new connections may do unless they ask for more. */
  readonly readsOnly: boolean;
  readonly used: number;
  readonly limit: number;
  /** Of the oldest transaction that is open in this database; 0 without one. */
  readonly oldestMs: number;
}

/** That PostgreSQL answers, takes writes, has connections left, and is not held up by a transaction that never ends. */
export const databaseAnswers = databaseCheck<Row>({
  code: 'DATABASE',
  statement: statement(
    'check_database',
    `SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS recovering,
            current_setting('default_transaction_read_only')::boolean AS "readsOnly",
            (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
            current_setting('max_connections')::int AS limit,
            coalesce((SELECT max(extract(epoch FROM clock_timestamp() - xact_start) * 1000)::float8 FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()
                         AND backend_type = 'client backend'), 0) AS "oldestMs"`,
  ),
  judge([row]) {
    if (!row) return { status: 'unknown', summary: 'PostgreSQL told nothing' };
    const { version, recovering, readsOnly, used, limit, oldestMs } = row;
    const evidence = { version, connections: `${used} of ${limit}`, oldestTransactionMs: Math.round(oldestMs) };
    if (recovering)
      return {
        status: 'fail',
        summary: 'the database is a standby: it takes no writes',
        evidence,
        hint: 'let the service have the primary: KEYTRAIL_DATABASE_URL names a standby, or nobody was promoted',
      };
    if (readsOnly)
      return {
        status: 'fail',
        summary: 'the database takes no writes: default_transaction_read_only is on',
        evidence,
        hint: 'a managed PostgreSQL sets it when its disk is full: make room; otherwise whoever set it (pg_db_role_setting) takes it back',
      };
    if (used >= limit * 0.9)
      return {
        status: 'warn',
        summary: `${used} of ${limit} connections are in use`,
        evidence,
        hint: 'fewer connections per process (KEYTRAIL_DATABASE_CONNECTIONS), or a higher max_connections',
      };
    if (oldestMs >= 60_000)
      return {
        status: 'warn',
        summary: `a transaction has been open for ${Math.round(oldestMs / 1000)} s`,
        evidence,
        hint: 'it holds back changes since a cursor, and vacuum: find it in pg_stat_activity by xact_start',
      };
    return { status: 'ok', summary: `PostgreSQL ${version} answers, ${used} of ${limit} connections in use`, evidence };
  },
});

export function probeDatabase(db: Database): Probe {
  return { code: 'DATABASE', run: () => askDatabase(db) };
}

/** What DATABASE is: a database that cannot be reached is a finding, and not something that is unknown; `whenAway` is told. */
export async function askDatabase(db: Database, whenAway?: (away: DatabaseAway) => void): Promise<Outcome> {
  try {
    return await runDatabaseCheck(db, databaseAnswers);
  } catch (error) {
    if (!(error instanceof DatabaseAway)) throw error;
    whenAway?.(error);
    return {
      status: 'fail',
      summary: error.message,
      hint: 'start PostgreSQL, or look at KEYTRAIL_DATABASE_URL and the network; what was committed is safe',
    };
  }
}
