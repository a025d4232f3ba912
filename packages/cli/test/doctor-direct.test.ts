import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { CheckStatus } from '@keytrail/contracts';
import { checkoutFolder, ensurePostgres, type ServerHandle } from '@keytrail/local';
import { createServiceDatabase, migrateDatabase } from '@keytrail/storage';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type ScriptedFleet, type ScriptedProcess, scriptFleet } from './scripted-fleet.ts';

const { OK, FAIL, UNKNOWN } = CheckStatus;
const away: ScriptedProcess = { service: 'session', target: '127.0.0.1:1', asked: [] };

let postgres: ServerHandle;
let fleet: ScriptedFleet;
/** Of session, with a row that lacks its keys. */
let environment: Record<string, string>;
beforeAll(async () => {
  fleet = scriptFleet();
  postgres = await ensurePostgres();
  const name = `direct_${randomUUID().replaceAll('-', '').slice(0, 12)}`;
  const url = await createServiceDatabase({ adminUrl: postgres.url, name, role: name, password: 'secret' });
  await migrateDatabase({ url, migrations: join(checkoutFolder, 'services/session/prisma/migrations') });
  const owner = new pg.Client(url);
  await owner.connect();
  await owner.query('ALTER TABLE sessions DROP CONSTRAINT sessions_native_is_complete');
  await owner.query(`INSERT INTO sessions (conversation_id, session_id, kind, epoch, initiator_user_id, initiator_device_id,
      envelopes_expected, withholdings_expected, writer_build, created_traceparent)
    VALUES (gen_random_uuid(), 's', 'NATIVE', 1, 'u', 'd', 0, 0, 'a-build', '')`);
  await owner.end();
  environment = { KEYTRAIL_DATABASE_URL_SESSION: url };
});
afterAll(async () => {
  await fleet?.stop();
  await postgres?.stop();
});

/** What is said of session, by whom. */
async function told(process: ScriptedProcess, code: 'SESSION_ROWS' | 'MIGRATIONS', ...args: string[]) {
  const { of } = await fleet.doctor([process], ['--only', code, ...args], environment);
  const ofSession = of(code).places.filter(({ where }) => where.includes('session'));
  return ofSession.map(({ where, status }) => `${where}: ${status}`);
}

describe('the database of a service', () => {
  it('is not read while a process tells of it', async () => {
    const sound = await fleet.start('session', { checks: { SESSION_ROWS: OK } });
    expect(await told(sound, 'SESSION_ROWS')).toEqual(['session: ok']);
  });

  it('is read with --direct, whatever a process tells', async () => {
    const sound = await fleet.start('session', { checks: { SESSION_ROWS: OK, MIGRATIONS: FAIL } });
    expect(await told(sound, 'SESSION_ROWS', '--direct')).toEqual(['database of session: fail']);
    expect(sound.asked).toEqual([]);
    // Each process compares with its own build: the database does not speak for them.
    expect(await told(sound, 'MIGRATIONS', '--direct')).toEqual([
      'database of session: ok',
      `session at ${sound.target}: fail`,
    ]);
  });

  it('is read when no process answers, or none can tell', async () => {
    expect(await told(away, 'SESSION_ROWS')).toEqual(['database of session: fail']);
    expect(await told(away, 'MIGRATIONS')).toEqual(['database of session: ok']);
    const blind = await fleet.start('session', { checks: { SESSION_ROWS: UNKNOWN } });
    expect(await told(blind, 'SESSION_ROWS')).toEqual(['database of session: fail']);
  });

  it('is read although no process takes the token, which is told of them', async () => {
    const refusing = await fleet.start('session', { takesToken: false });
    const looks = (...args: string[]) =>
      fleet.doctor([refusing], ['--only', 'SERVICES_REACHABLE,SESSION_ROWS', ...args], environment);
    for (const { ended, of } of [await looks(), await looks('--direct')]) {
      expect({ ended, rows: of('SESSION_ROWS').places }).toMatchObject({
        ended: 1,
        rows: [{ where: 'database of session', status: 'fail' }],
      });
      expect(of('SERVICES_REACHABLE').places[0]).toMatchObject({
        status: 'fail',
        summary: expect.stringContaining('TOKEN_INVALID'),
        hint: expect.stringContaining('KEYTRAIL_OPERATOR_TOKEN_FILE'),
      });
    }
  });

  it('that does not answer either is no reason to say that nothing does: who refuses a token does', async () => {
    const refusing = await fleet.start('session', { takesToken: false });
    const nowhere = { KEYTRAIL_DATABASE_URL_SESSION: 'postgres://nobody:secret@127.0.0.1:1/none' };
    expect((await fleet.doctor([refusing], ['--only', 'SERVICES_REACHABLE'], nowhere)).ended).toBe(1);
  });
});
