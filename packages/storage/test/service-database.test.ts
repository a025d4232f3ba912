import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createServiceDatabase } from '../src/index.ts';
import { startTestPostgres, type TestPostgres } from './own-database.ts';

let postgres: TestPostgres;
beforeAll(async () => {
  postgres = await startTestPostgres();
}, 60_000);
afterAll(() => postgres?.stop());

async function query(url: string, sql: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

test('a service owns its database and cannot enter that of another', async () => {
  const session = {
    adminUrl: postgres.server.url,
    name: 'kt_session',
    role: 'kt-session',
    password: "it's /?#@ secret",
  };
  const url = await createServiceDatabase(session);
  const other = await createServiceDatabase({ ...session, name: 'kt_conversation', role: 'kt_conversation' });
  await query(url, 'CREATE TABLE mine (id int)');
  expect(await query(url, 'SELECT current_user::text AS who, current_database()::text AS place')).toEqual([
    { who: 'kt-session', place: 'kt_session' },
  ]);
  const stranger = new URL(other);
  stranger.pathname = '/kt_session';
  await expect(query(stranger.href, 'SELECT 1')).rejects.toThrow('permission denied for database');
});

test('creating it again, even concurrently, changes nothing but the password', async () => {
  const wanted = { adminUrl: postgres.server.url, name: 'kt_again', role: 'kt_again', password: 'old' };
  await Promise.all(Array.from({ length: 4 }, () => createServiceDatabase(wanted)));
  await query(await createServiceDatabase(wanted), 'CREATE TABLE kept (id int)');
  const url = await createServiceDatabase({ ...wanted, password: 'new' });
  expect(await query(url, 'SELECT * FROM kept')).toEqual([]);
});

test('an admin that is no superuser can create one', async () => {
  await query(postgres.server.url, `CREATE ROLE owner LOGIN CREATEDB CREATEROLE PASSWORD 'owner'`);
  const adminUrl = new URL(postgres.server.url);
  adminUrl.username = 'owner';
  adminUrl.password = 'owner';
  const url = await createServiceDatabase({
    adminUrl: adminUrl.href,
    name: 'kt_plain',
    role: 'kt_plain',
    password: 'p',
  });
  expect(await query(url, 'SELECT 1 AS one')).toEqual([{ one: 1 }]);
});
