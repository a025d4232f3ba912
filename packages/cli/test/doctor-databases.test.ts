import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { checkoutFolder, ensurePostgres, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type Databases, openDatabases } from '../src/doctor/databases.ts';
import { run } from '../src/program.ts';

let postgres: ServerHandle;
beforeAll(async () => {
  postgres = await ensurePostgres();
});
afterAll(() => postgres?.stop());

/** A database of session, as it is after `keytrail migrate deploy`, and statements of its owner. */
async function database(...statements: string[]): Promise<string> {
  const name = `doctor_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
  const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: 'secret' });
  await migrateDatabase({ url, migrations: join(checkoutFolder, 'services/session/prisma/migrations') });
  const client = new pg.Client(url);
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
  return url;
}

async function using<T>(url: string, look: (databases: Databases) => Promise<T>): Promise<T> {
  const databases = openDatabases(new Map([['session', url]]));
  try {
    return await look(databases);
  } finally {
    await databases.close();
  }
}

describe('a database that the doctor reads itself', () => {
  let url: string;
  beforeEach(async () => {
    url = await database();
  });

  it('is read although DATABASE finds fault with it: a standby has the rows, too', async () => {
    // Its answer is all by which a standby is known; the search path has it found before PostgreSQL’s own.
    const standby = await database(
      'CREATE FUNCTION pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS $$ SELECT true $$',
      `ALTER ROLE CURRENT_USER SET search_path = public, pg_catalog`,
    );
    await using(standby, async (databases) => {
      expect(await databases.run('DATABASE', 'session')).toMatchObject({
        status: 'fail',
        summary: 'the database is a standby: it takes no writes',
      });
      expect(await databases.run('SESSION_ROWS', 'session')).toMatchObject({ status: 'ok' });
    });
  });

  it('that takes no writes fails, and is read', async () => {
    const full = await database('ALTER ROLE CURRENT_USER SET default_transaction_read_only = on');
    await using(full, async (databases) => {
      expect(await databases.run('DATABASE', 'session')).toMatchObject({
        status: 'fail',
        summary: expect.stringContaining('takes no writes'),
      });
      expect(await databases.run('SESSION_ROWS', 'session')).toMatchObject({ status: 'ok' });
    });
  });

  it('is not asked again once it did not answer', async () => {
    await using('postgres://nobody:secret@127.0.0.1:1/none', async (databases) => {
      expect(await databases.run('DATABASE', 'session')).toMatchObject({ status: 'fail' });
      expect(await databases.run('SESSION_ROWS', 'session')).toMatchObject({
        status: 'unknown',
        summary: 'the database does not answer',
      });
    });
  });

  it('has the SQL of every check printed that asks it anything', async () => {
    const written = { out: '', err: '' };
    const code = await run(
      ['doctor', '--only', 'DATABASE,MIGRATIONS,SESSION_ROWS', '--database-url', `session=${url}`],
      {
        environment: {},
        out(text) {
          written.out += text;
        },
        say(text) {
          written.err += text;
        },
      },
    );
    expect({ code, ...written }).toMatchObject({ out: expect.stringMatching(/^ok +SESSION_ROWS/m) });
    for (const words of [
      'FROM _prisma_migrations',
      'SELECT migration FROM schema_floor',
      'pg_stat_activity',
      'FROM sessions',
    ])
      expect(written.out).toContain(words);
  });

  describe('ends the command', () => {
    const nowhere = 'postgres://nobody:secret@127.0.0.1:1/none';
    const ends = async (only: string, databases: Readonly<Record<string, string>>) => {
      let out = '';
      const given = Object.entries(databases).flatMap(([service, at]) => ['--database-url', `${service}=${at}`]);
      const code = await run(['doctor', '-o', 'json', '--only', only, ...given], {
        environment: {},
        out(text) {
          out += text;
        },
        say() {},
      });
      expect((JSON.parse(out) as { exitCode: number }).exitCode).toBe(code);
      return code;
    };
    const but = (change: (at: URL) => void) => {
      const at = new URL(url);
      change(at);
      return at.href;
    };

    it('with 3 when it does not answer, whatever was to be looked at', async () => {
      expect(await ends('DATABASE,SESSION_ROWS', { session: nowhere })).toBe(3);
      expect(await ends('SESSION_ROWS', { session: nowhere, conversation: nowhere })).toBe(3);
      expect(await ends('MIGRATIONS', { session: nowhere })).toBe(3);
    });

    it('as its checks do once any database answered, if only that it lets nobody in', async () => {
      expect(await ends('DATABASE,SESSION_ROWS', { session: url, conversation: nowhere })).toBe(1);
      expect(await ends('SESSION_ROWS', { session: url, conversation: nowhere })).toBe(0);
      const refused = but((at) => {
        at.username = 'nobody';
      });
      expect(await ends('SESSION_ROWS', { session: refused })).toBe(5);
      const unknown = but((at) => {
        at.pathname = '/none';
      });
      expect(await ends('DATABASE', { session: unknown })).toBe(1);
    });
  });

  describe('that is waited for', () => {
    const damaged = `INSERT INTO sessions (conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, envelopes_expected,
        withholdings_expected, writer_build, created_traceparent)
      VALUES (gen_random_uuid(), 's', 'NATIVE', 1, 'u', 'd', 0, 0, 'a-build', '')`;
    const looks = async (wait: string, whenLookingAgain: (owner: pg.Client) => Promise<unknown>) => {
      const faulty = await database('ALTER TABLE sessions DROP CONSTRAINT sessions_native_is_complete', damaged);
      const owner = new pg.Client(faulty);
      await owner.connect();
      let [out, looked] = ['', 0];
      const healing: Promise<unknown>[] = [];
      try {
        const args = [
          'doctor',
          '-o',
          'json',
          '--only',
          'SESSION_ROWS',
          '--wait',
          wait,
          '--database-url',
          `session=${faulty}`,
        ];
        const code = await run(args, {
          environment: {},
          out(text) {
            out += text;
          },
          say(text) {
            if (!text.includes('1 fail; looking again')) return;
            looked++;
            healing.push(whenLookingAgain(owner));
          },
        });
        await Promise.all(healing);
        return { code, looked, report: JSON.parse(out) as { status: string; exitCode: number } };
      } finally {
        await owner.end();
      }
    };

    it('is looked at again until nothing fails, and reported once', async () => {
      const { code, looked, report } = await looks('5m', (owner) => owner.query('DELETE FROM sessions'));
      expect(looked).toBeGreaterThanOrEqual(1);
      expect({ code, ...report }).toMatchObject({ code: 0, status: 'ok', exitCode: 0 });
    });

    it('is reported as it is when the time is over', async () => {
      const { code, looked, report } = await looks('1s', async () => {});
      expect(looked).toBeGreaterThanOrEqual(1);
      expect({ code, ...report }).toMatchObject({ code: 1, status: 'fail', exitCode: 1 });
    });
  });

  it('cannot be written to by any check, whatever stands in the place of a table', async () => {
    const trap = await database(
      'CREATE TABLE noted (at timestamptz)',
      `CREATE FUNCTION note() RETURNS text LANGUAGE sql AS $$ INSERT INTO noted VALUES (now()) RETURNING '' $$`,
      'DROP TABLE schema_floor',
      'CREATE VIEW schema_floor AS SELECT note() AS migration',
    );
    expect(await using(trap, (databases) => databases.run('MIGRATIONS', 'session'))).toMatchObject({
      status: 'unknown',
    });
    const client = new pg.Client(trap);
    await client.connect();
    try {
      expect((await client.query('SELECT count(*)::int AS notes FROM noted')).rows).toEqual([{ notes: 0 }]);
    } finally {
      await client.end();
    }
  });
});
