import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { checkoutFolder } from '@keytrail/local';
import { migrateDatabase, migrationNames } from '@keytrail/storage';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startTestPostgres, type TestPostgres } from '../../storage/test/own-database.ts';
import { run } from '../src/program.ts';

let postgres: TestPostgres;
let url: string;
const folders: string[] = [];

beforeAll(async () => {
  postgres = await startTestPostgres();
}, 60_000);
beforeEach(async () => {
  url = await postgres.createDatabase();
});
afterAll(async () => {
  for (const folder of folders) rmSync(folder, { recursive: true });
  await postgres?.stop();
});

const own = join(checkoutFolder, 'services', 'session', 'prisma', 'migrations');
const names = migrationNames(own);
const newest = names.at(-1) ?? '';

/** A folder with these migrations of session. */
function only(some: readonly string[]): string {
  const folder = mkdtempSync(join(tmpdir(), 'keytrail-previous-'));
  folders.push(folder);
  for (const name of [...some, 'migration_lock.toml']) cpSync(join(own, name), join(folder, name), { recursive: true });
  return folder;
}

const previous = () => only(names.slice(0, -1));

async function keytrail(...args: string[]) {
  let [out, said] = ['', ''];
  const code = await run(['migrate', ...args], {
    environment: { KEYTRAIL_DATABASE_URL_SESSION: url },
    out: (text) => {
      out += text;
    },
    say: (text) => {
      said += text;
    },
  });
  return { code, out, said };
}

async function sql(text: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(text).finally(() => client.end());
}

test('a database that lacks a migration is behind until deploy has applied it, and deploying again does nothing', async () => {
  await migrateDatabase({ url, migrations: previous() });
  const before = await keytrail('status', '--service', 'session');
  expect(before).toMatchObject({ code: 5 });
  expect(before.out).toContain(`session: missing ${newest} (deploy would apply it)`);
  expect(before.out).toMatch(/session +behind +no: SCHEMA_BEHIND/);
  const deployed = await keytrail('deploy', '--service', 'session');
  expect(deployed).toMatchObject({ code: 0, out: `session: applied ${newest}\n` });
  expect(deployed.said).toContain(`session: applying ${newest}`);
  expect(await keytrail('deploy', '--service', 'session')).toMatchObject({
    code: 0,
    out: 'session: nothing to apply\n',
  });
  expect(await keytrail('status', '--service', 'session')).toMatchObject({ code: 0 });
});

test('two deployments at once apply each migration once, and both are done', async () => {
  const both = await Promise.all([keytrail('deploy', '--json'), keytrail('deploy', '--json')]);
  expect(both.map(({ code }) => code)).toEqual([0, 0]);
  const applied = both.flatMap(({ out }) => (JSON.parse(out) as { databases: { applied: string[] }[] }).databases);
  expect(applied.flatMap((database) => database.applied)).toEqual(names);
});

test('a database ahead of this build is told with its floor, and deploy leaves it alone', async () => {
  await keytrail('deploy');
  await sql(`INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, started_at, applied_steps_count)
             VALUES ('later', 'x', now(), '20990101000000_later', now(), 1)`);
  const ahead = await keytrail('status', '--json');
  expect(ahead.code).toBe(6);
  expect(JSON.parse(ahead.out)).toMatchObject({
    databases: [{ service: 'session', state: 'ahead', serves: true, unknown: ['20990101000000_later'] }],
  });
  await sql(`UPDATE schema_floor SET migration = '20990101000000_later'`);
  expect((await keytrail('status')).out).toMatch(/ahead +no: BUILD_BEHIND .* 20990101000000_later\n/);
  const refused = await keytrail('deploy');
  expect(refused).toMatchObject({ code: 6, out: '' });
  expect(refused.said).toContain('unknown: 20990101000000_later');
});

test('a migration that failed is told as that, and is tried again when that is asked for', async () => {
  await migrateDatabase({ url, migrations: previous() });
  await sql(`INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at, applied_steps_count)
             VALUES ('failed', 'x', '${newest}', now(), 0)`);
  const failed = await keytrail('status');
  expect(failed).toMatchObject({ code: 7 });
  expect(failed.out).toContain(`session: failed ${newest}`);
  expect(failed.out).toContain('deploy --retry-failed');
  const refused = await keytrail('deploy');
  expect(refused).toMatchObject({ code: 7, said: expect.stringContaining('deploy --retry-failed') });
  expect(await keytrail('deploy', '--retry-failed')).toMatchObject({ code: 0, out: `session: applied ${newest}\n` });
});

describe('a migration whose row was lost', () => {
  const lost = names.find((name) => name.endsWith('_restore_fence')) ?? '';
  const resolve = (name: string) => keytrail('resolve', '--service', 'session', '--applied', name);

  test('while its schema is there is told as that by deploy, and noted as applied when that is asked for', async () => {
    await keytrail('deploy');
    await sql(`DELETE FROM _prisma_migrations WHERE migration_name = '${lost}'`);
    const deployed = await keytrail('deploy');
    expect(deployed).toMatchObject({ code: 1, said: expect.stringContaining(`migrate resolve --applied ${lost}`) });
    expect(deployed.said).toContain('already exists');
    expect(deployed.said).not.toContain('--retry-failed');
    expect(await resolve(lost)).toMatchObject({ code: 0, out: expect.stringContaining('CONSTRAINTS') });
    expect(await keytrail('status')).toMatchObject({ code: 0 });
    expect(await keytrail('deploy')).toMatchObject({ code: 0, out: 'session: nothing to apply\n' });
    expect(await resolve(lost)).toMatchObject({ code: 1, said: expect.stringContaining('is applied') });
  });

  test('is not noted while it can be applied, nor before one that comes earlier, and the trial leaves nothing', async () => {
    const before = names.slice(0, names.indexOf(lost));
    await migrateDatabase({ url, migrations: only(before) });
    expect(await resolve(newest)).toMatchObject({ code: 1, said: expect.stringContaining(`lacks ${lost}`) });
    expect(await resolve(lost)).toMatchObject({ code: 1, said: expect.stringContaining('can be applied') });
    expect(await keytrail('status')).toMatchObject({ code: 5, out: expect.stringContaining(`missing ${lost}`) });
    expect(await keytrail('deploy')).toMatchObject({ code: 0 });
  });

  test('has to be named with its database', async () => {
    expect(await keytrail('resolve', '--applied', lost)).toMatchObject({ code: 2 });
  });
});

test('what cannot be reached is 3, what is no URL is 2, and no password is ever told', async () => {
  url = 'postgres://somebody:geheim@127.0.0.1:1/none';
  const away = await keytrail('status');
  expect(away.code).toBe(3);
  const wrong = await keytrail('status', '--database-url', 'session=http://somebody:geheim@example/x');
  expect(wrong.code).toBe(2);
  const misspelt = await keytrail('status', '--service', 'sessions');
  expect(misspelt.code).toBe(2);
  expect(await keytrail('status', '--service', 'conversation')).toMatchObject({ code: 2 });
  for (const { out, said } of [away, wrong, misspelt]) expect(out + said).not.toContain('geheim');
});
