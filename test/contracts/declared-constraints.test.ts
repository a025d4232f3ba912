import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { constraintsCheck, type DeclaredConstraints, runDatabaseCheck } from '@keytrail/diagnosis';
import { checkoutFolder, ensurePostgres, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, type Database, migrateDatabase, openDatabase } from '@keytrail/storage';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { declared as conversation } from '../../services/conversation/src/checks/declared-constraints.ts';
import { declared as identityKeys } from '../../services/identity-keys/src/checks/declared-constraints.ts';
import { declared as session } from '../../services/session/src/checks/declared-constraints.ts';

let postgres: ServerHandle;
beforeAll(async () => {
  postgres = await ensurePostgres();
});
afterAll(() => postgres?.stop());

/** What the doctor compares with, of a database; its own table of migrations belongs to nobody. */
async function constraintsIn({ pool }: Database, declared: DeclaredConstraints): Promise<Record<string, string[]>> {
  const { rows } = await pool.query<{ kind: string; table: string; name: string; holds: boolean }>(
    constraintsCheck(session).statement.text,
  );
  const own = rows.filter(({ table, holds }) => holds && table !== '_prisma_migrations');
  const names = (kind: string) => own.flatMap((row) => (row.kind === kind ? [`${row.table}.${row.name}`] : [])).sort();
  const constraints = names('constraints');
  return {
    constraints,
    // A unique constraint has an index of its name.
    uniqueIndexes: names('uniqueIndexes').filter((name) => !constraints.includes(name)),
    triggers: names('triggers'),
    // Of the tables whose rows are looked at; others have constraints that need their columns.
    notNull: names('notNull').filter((name) => declared.notNull[name.split('.')[0] ?? '']),
  };
}

function listed(declared: DeclaredConstraints): Record<string, string[]> {
  return Object.fromEntries(
    Object.entries(declared).map(([kind, tables]: [string, Readonly<Record<string, readonly string[]>>]) => [
      kind,
      Object.entries(tables)
        .flatMap(([table, names]) => names.map((name) => `${table}.${name}`))
        .sort(),
    ]),
  );
}

test.each([
  ['identity-keys', identityKeys],
  ['session', session],
  ['conversation', conversation],
] as const)('what the migrations of %s hold their rows by is what the doctor looks for', async (service, declared) => {
  const name = `declared_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
  const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: 'secret' });
  await migrateDatabase({ url, migrations: join(checkoutFolder, 'services', service, 'prisma/migrations') });
  const db = openDatabase({ url, service: 'declared', connections: 1, statementTimeoutMs: 5_000 });
  try {
    expect(await constraintsIn(db, declared)).toEqual(listed(declared));
    expect(await runDatabaseCheck(db, constraintsCheck(declared))).toMatchObject({ status: 'ok' });
  } finally {
    await db.close();
  }
});
