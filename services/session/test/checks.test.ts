import { randomUUID } from 'node:crypto';
import { type Outcome, runDatabaseCheck } from '@keytrail/diagnosis';
import { ensurePostgres, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, type Database, migrateDatabase, openDatabase } from '@keytrail/storage';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { databaseChecks } from '../src/checks/index.ts';
import { migrationsFolder } from '../src/service.ts';

const sessions = 12_000;
const oneSession = `SELECT gen_random_uuid(), 's', 'IMPORTED', 1, 'u', 'd', 0, 0, 'elsewhere'`;
const columns =
  '(conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id, envelopes_expected, withholdings_expected, imported_from, writer_build, created_traceparent, created_at, header)';

let postgres: ServerHandle;
let db: Database;
beforeAll(async () => {
  postgres = await ensurePostgres();
  const name = `session_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
  const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: 'secret' });
  await migrateDatabase({ url, migrations: migrationsFolder });
  db = openDatabase({ url, service: 'session', connections: 1, statementTimeoutMs: 60_000 });
  // A table as it is after a year: what was erased left room in its first pages, and that is where the next rows go.
  await db.pool.query(
    `INSERT INTO sessions ${columns} ${oneSession}, '1.0.0+now', '', now() - (${sessions} - n) * interval '1 minute', convert_to(repeat('x', 900), 'UTF8')
       FROM generate_series(1, ${sessions}) AS n ORDER BY n`,
  );
  await db.pool.query(`DELETE FROM sessions WHERE created_at < now() - ${(sessions * 2) / 3} * interval '1 minute'`);
  await db.pool.query('VACUUM ANALYZE sessions');
}, 60_000);
afterAll(async () => {
  await db?.close();
  await postgres?.stop();
});

function outcome(code: string): Promise<Outcome> {
  const check = databaseChecks.find((each) => each.code === code);
  if (!check) throw new Error(`there is no check ${code}`);
  return runDatabaseCheck(db, check);
}

const oldBuild = '0.0.9+old';

describe('a row that went into freed space of a large table', () => {
  const conversationId = randomUUID();
  beforeAll(async () => {
    // As somebody who switched the constraint off: what the check is for.
    await db.pool.query('ALTER TABLE sessions DROP CONSTRAINT sessions_native_is_complete');
    await db.pool.query('ALTER TABLE sessions DISABLE TRIGGER session_is_whole');
    await db.pool.query(
      `INSERT INTO sessions ${columns} SELECT $1, 's', 'NATIVE', 1, 'u', 'd', 2, 0, NULL, $2, '', now() - interval '1 hour', NULL`,
      [conversationId, oldBuild],
    );
    const { rows } = await db.pool.query<{ page: number; pages: number }>(
      `SELECT (ctid::text::point)[0]::int AS page, pg_relation_size('sessions')::int / 8192 AS pages FROM sessions WHERE writer_build = $1`,
      [oldBuild],
    );
    expect(rows[0]?.page).toBeLessThan((rows[0]?.pages ?? 0) - 1_000);
  });

  it('is seen by OLD_BUILD_WRITES, although a thousand newer ones are by another build', async () => {
    const { subjects = [] } = await outcome('OLD_BUILD_WRITES');
    expect(subjects.map((subject) => subject.split(' ')[0])).toEqual(['1.0.0+now', oldBuild]);
  });

  it('is seen by SESSION_ROWS and ENVELOPE_COUNTS', async () => {
    expect(await outcome('SESSION_ROWS')).toMatchObject({
      status: 'fail',
      evidence: { withoutEphemeral: 1, example: `${conversationId}/s`, writerBuild: oldBuild },
    });
    expect(await outcome('ENVELOPE_COUNTS')).toMatchObject({
      status: 'fail',
      evidence: { wrong: 1, example: expect.stringContaining(oldBuild) },
    });
  });
});
