import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Database, restoreFenceMigration } from '../src/index.ts';
import { startTestPostgres, type TestPostgres } from './own-database.ts';

let postgres: TestPostgres;
let db: Database;
beforeAll(async () => {
  postgres = await startTestPostgres();
});
afterAll(() => postgres?.stop());

async function restoring(): Promise<void> {
  db = await postgres.openDatabase(restoreFenceMigration);
  await db.pool.query(`UPDATE restore_fence SET position = 7, closed = true;
    INSERT INTO database_restores (incarnation, ended_incarnation, because, found_place, position_found, position_expected)
    SELECT gen_random_uuid(), incarnation, 'by a test', place, 7, 8 FROM restore_fence`);
}

test.for([
  ['its position does not go back', 'UPDATE restore_fence SET position = 6'],
  ['it does not open without a new incarnation', 'UPDATE restore_fence SET closed = false'],
  [
    'it does not open into an incarnation that no restore begins',
    'UPDATE restore_fence SET closed = false, incarnation = gen_random_uuid()',
  ],
  [
    'it gets no other incarnation while it stays closed',
    'UPDATE restore_fence SET incarnation = (SELECT incarnation FROM database_restores)',
  ],
])('by straight SQL, of a closed fence %s', async ([, sql]) => {
  await restoring();
  await expect(db.pool.query(sql as string)).rejects.toMatchObject({ constraint: 'restore_fence_goes_forward' });
  await db.pool.query(
    'UPDATE restore_fence SET closed = false, incarnation = (SELECT incarnation FROM database_restores)',
  );
});

test('by straight SQL, a second restore is not begun before the first is dealt with', async () => {
  await restoring();
  const again = `INSERT INTO database_restores (incarnation, ended_incarnation, because, found_place, position_found, position_expected)
    SELECT gen_random_uuid(), incarnation, 'again', place, 7, 8 FROM restore_fence`;
  await expect(db.pool.query(again)).rejects.toMatchObject({ constraint: 'database_restores_one_at_a_time' });
});

test('who names what a database cannot know does not pass: another incarnation, a later position, an earlier start, and nobody while it is closed', async () => {
  db = await postgres.openDatabase(restoreFenceMigration);
  const pass = (values: readonly unknown[]) =>
    db.pool.query('SELECT pass_restore_fence($1, $2, $3) AS passed', [...values]);
  const { rows } = await db.pool.query('SELECT incarnation, server_started() AS started FROM restore_fence');
  const { incarnation, started } = rows[0];
  const notPassed = { constraint: 'restore_fence_is_passed' };
  await db.pool.query('UPDATE restore_fence SET position = 7');
  expect((await pass([incarnation, 7n, started])).rows).toEqual([{ passed: true }]);
  expect((await pass([null, null, null])).rows).toEqual([{ passed: true }]);
  await expect(pass(['00000000-0000-4000-8000-000000000000', 7n, started])).rejects.toMatchObject(notPassed);
  await expect(pass([incarnation, 8n, started])).rejects.toMatchObject(notPassed);
  await expect(pass([incarnation, 7n, '1'])).rejects.toMatchObject(notPassed);
  await db.pool.query('UPDATE restore_fence SET closed = true');
  await expect(pass([null, null, null])).rejects.toMatchObject(notPassed);
});

test.for(['identity-keys', 'session', 'conversation'])('%s has the fence as it is tested here', (service) => {
  const migrations = join(import.meta.dirname, '../../../services', service, 'prisma/migrations');
  const applied = readFileSync(join(migrations, '20261125040000_restore_fence/migration.sql'), 'utf8');
  expect(applied.slice(applied.indexOf('\n') + 1)).toBe(restoreFenceMigration);
});
