import type pg from 'pg';

/**
 * Takes away the index that a migration is about to build, where an earlier try left it unfinished: CREATE INDEX CONCURRENTLY is no transaction,
 * what fails leaves an index that nothing reads, and IF NOT EXISTS would take that for the index.
 */
export async function dropUnfinishedIndex(pool: pg.Pool, script: string): Promise<void> {
  const [, name] = concurrently.exec(script) ?? [];
  if (name === undefined) return;
  const { rows } = await pool.query<{ index: string }>(
    'SELECT indexrelid::regclass::text AS index FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid',
    [name],
  );
  for (const { index } of rows) await pool.query(`DROP INDEX CONCURRENTLY ${index}`);
}

const concurrently =
  /^(?:\s|--.*\n)*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?([\w."]+)\s+ON\s/i;
