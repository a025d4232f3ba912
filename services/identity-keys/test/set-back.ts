import { cp, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import pg from 'pg';
import type { IdentityKeysUnderTest } from './identity-keys-fixture.ts';

/** A copy of a database from an earlier time, to be put in its place. */
export interface EarlierCopy {
  putBack(): Promise<void>;
}

/** Copies the data of the whole server while it is stopped; putting it back keeps server, timeline and database as they were. */
export async function copyServer({ postgres, adminUrl }: IdentityKeysUnderTest): Promise<EarlierCopy> {
  const folder = await withAdmin(
    adminUrl,
    async (admin) => (await admin.query('SHOW data_directory')).rows[0].data_directory,
  );
  const copy = `${dirname(folder)}/earlier-${process.hrtime.bigint()}`;
  await postgres.halt?.();
  await cp(folder, copy, { recursive: true, preserveTimestamps: true });
  await takeOver(folder, copy);
  await postgres.restart?.();
  return {
    async putBack() {
      await postgres.halt?.();
      await rm(folder, { recursive: true });
      await cp(copy, folder, { recursive: true });
      await takeOver(copy, folder);
      await postgres.restart?.();
    },
  };
}

/** Copies the one database within its server, as a dump that is read back would: another database under the same name. */
export async function copyDatabase({ postgres, databaseName }: IdentityKeysUnderTest): Promise<EarlierCopy> {
  const copy = `${databaseName}_earlier`;
  const alone = (work: (admin: pg.Client) => Promise<unknown>) =>
    withAdmin(postgres.url, async (admin) => {
      await admin.query(`ALTER DATABASE ${databaseName} ALLOW_CONNECTIONS false`);
      await admin.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [databaseName]);
      await work(admin);
      await admin.query(`ALTER DATABASE ${databaseName} ALLOW_CONNECTIONS true`);
    });
  await alone((admin) => admin.query(`CREATE DATABASE ${copy} TEMPLATE ${databaseName} OWNER ${databaseName}`));
  return {
    putBack: () =>
      alone(async (admin) => {
        await admin.query(`DROP DATABASE ${databaseName} WITH (FORCE)`);
        await admin.query(`ALTER DATABASE ${copy} RENAME TO ${databaseName}`);
      }),
  };
}

/** Promotes nothing: makes the server begin a new timeline over the same data, as a standby that has every commit would when it is promoted. */
export async function switchTimeline({ postgres, adminUrl }: IdentityKeysUnderTest): Promise<void> {
  const folder = await withAdmin(
    adminUrl,
    async (admin) => (await admin.query('SHOW data_directory')).rows[0].data_directory,
  );
  await postgres.halt?.();
  const { writeFile } = await import('node:fs/promises');
  // Recovery from an archive that has nothing more ends at once, in a new timeline.
  await writeFile(`${folder}/recovery.signal`, '');
  await writeFile(`${folder}/postgresql.auto.conf`, "restore_command = 'false'\n");
  await takeOver(folder, `${folder}/recovery.signal`);
  await postgres.restart?.();
}

async function withAdmin<T>(url: string, work: (admin: pg.Client) => Promise<T>): Promise<T> {
  const admin = new pg.Client({ connectionString: url });
  admin.on('error', () => {});
  await admin.connect();
  try {
    return await work(admin);
  } finally {
    await admin.end();
  }
}

/** A server that runs as another user than this one must own its files. */
async function takeOver(from: string, to: string): Promise<void> {
  const { stat, chown, readdir, lstat } = await import('node:fs/promises');
  const { uid, gid } = await stat(from);
  if (uid === process.getuid?.()) return;
  const walk = async (path: string): Promise<void> => {
    await chown(path, uid, gid);
    if ((await lstat(path)).isDirectory()) for (const entry of await readdir(path)) await walk(`${path}/${entry}`);
  };
  await walk(to);
}
