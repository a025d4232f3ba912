import { ensurePostgres, type ServerHandle } from '@keytrail/local';
import { type Database, openDatabase, statement } from '@keytrail/storage';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { askDatabase, checkStatementTimeoutMs, databaseCheck, runDatabaseCheck } from '../src/index.ts';

let postgres: ServerHandle;
let db: Database;
beforeAll(async () => {
  postgres = await ensurePostgres();
  db = openDatabase({ url: postgres.url, service: 'diagnosis', connections: 1, statementTimeoutMs: 10_000 });
});
afterAll(async () => {
  await db?.close();
  await postgres?.stop();
});

function checkBy(name: string, text: string) {
  return databaseCheck<{ value: string }>({
    code: 'DATABASE',
    statement: statement(name, text),
    values: (subjects) => (subjects.length > 0 ? [subjects] : []),
    judge: ([row]) => ({ status: 'ok', summary: row?.value ?? '' }),
  });
}

test('a check sees what is there, and is given what it compares with', async () => {
  const check = checkBy('test_check_reads', "SELECT array_to_string($1::text[], '+') AS value");
  expect(await runDatabaseCheck(db, check, ['a', 'b'])).toEqual({ status: 'ok', summary: 'a+b' });
});

test('a check cannot write, and leaves nothing behind that the next one would see', async () => {
  const writing = checkBy('test_check_writes', "CREATE TABLE written_by_a_check AS SELECT 'x' AS value");
  await expect(runDatabaseCheck(db, writing)).rejects.toMatchObject({ cause: { code: '25006' } });
  const looking = checkBy('test_check_looks', "SELECT to_regclass('written_by_a_check')::text AS value");
  expect(await runDatabaseCheck(db, looking)).toEqual({ status: 'ok', summary: '' });
});

test('a check is bounded by itself, whatever the service allows its statements', async () => {
  const bound = checkBy('test_check_bound', "SELECT current_setting('statement_timeout') AS value");
  expect((await runDatabaseCheck(db, bound)).summary).toBe(`${checkStatementTimeoutMs / 1000}s`);
});

test('a database that cannot be reached is a failure, not something unknown', async () => {
  const away = openDatabase({
    url: 'postgres://nobody:secret@127.0.0.1:1/none',
    service: 'diagnosis',
    connections: 1,
    statementTimeoutMs: 1_000,
  });
  const found = await askDatabase(away);
  await away.close();
  expect(found).toMatchObject({ status: 'fail', summary: expect.stringContaining('cannot be reached') });
  expect(JSON.stringify(found)).not.toContain('secret');
});
