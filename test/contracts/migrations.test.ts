import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkoutFolder } from '@keytrail/local';
import { servicesWithDatabase } from '@keytrail/local/constellation';
import { migrationNames } from '@keytrail/storage';
import { expect, test } from 'vitest';

/** Those before were never applied to tables that somebody uses. */
const first = '20261125100000_writers';

/** Tables that a migration locks while it builds an index on all that is in them, and indexes that are not the only statement of their migration. */
function lockedByIndexes(sql: string): string[] {
  const statements = sql
    .replace(/--.*/g, '')
    .split(';')
    .filter((text) => text.trim() !== '');
  return [...sql.matchAll(/CREATE\s+(?:UNIQUE\s+)?INDEX\s+(CONCURRENTLY\s+IF NOT EXISTS\s)?[^;]*?\sON\s+(\w+)/gi)]
    .filter(([, concurrently]) => !concurrently || statements.length > 1)
    .map(([, , table = '']) => table)
    .filter((table) => !new RegExp(`CREATE TABLE ${table}\\b`, 'i').test(sql));
}

test('an index on a table in use is built while others write: CONCURRENTLY, in a migration of its own', () => {
  const later = servicesWithDatabase.flatMap((service) => {
    const folder = join(checkoutFolder, 'services', service, 'prisma', 'migrations');
    return migrationNames(folder)
      .filter((name) => name >= first)
      .map((name) => ({ name, sql: readFileSync(join(folder, name, 'migration.sql'), 'utf8') }));
  });
  expect(later.filter(({ sql }) => sql.includes('CREATE INDEX')).length).toBeGreaterThan(8);
  for (const { name, sql } of later) expect(lockedByIndexes(sql), name).toEqual([]);
});

test('one that keeps writers waiting is found', () => {
  const own = 'CREATE TABLE notes (id int); CREATE INDEX notes_by_id ON notes (id);';
  expect(lockedByIndexes(own)).toEqual([]);
  expect(lockedByIndexes(`${own} CREATE UNIQUE INDEX one ON devices (id);`)).toEqual(['devices']);
  const alone = '-- Why; and why.\nCREATE INDEX CONCURRENTLY IF NOT EXISTS one ON devices (id) WHERE id > 1;';
  expect(lockedByIndexes(alone)).toEqual([]);
  expect(lockedByIndexes(`${alone} SELECT 1;`)).toEqual(['devices']);
  expect(lockedByIndexes(alone.replace('IF NOT EXISTS ', ''))).toEqual(['devices']);
});
