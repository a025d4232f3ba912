import { randomBytes } from 'node:crypto';
import { globSync } from 'node:fs';
import { chown, cp, rm, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import pg from 'pg';
import { runCommand } from '../run-command.ts';
import { installPostgres } from '../toolchain/postgres-package.ts';
import { startContainer } from './container.ts';
import { environmentServer } from './environment-server.ts';
import { canReach, type Identity, makeInstanceFolder, unprivilegedIdentity } from './instance-folder.ts';
import { startOwnServer } from './own-server.ts';
import { baseEnvironment, findPrograms, firstSuitable, isExecutable, type Program } from './programs-on-path.ts';
import { NotAvailable, type Origin, type ServerHandle, type ServerOptions } from './server.ts';
import { firstAvailable } from './ways.ts';

export interface PostgresOptions extends ServerOptions {
  /** Whether committed rows survive a power cut (not just a crash of the server). Default false. */
  readonly fsync?: boolean;
  /** Further server settings, such as `{ log_statement: 'all' }`. */
  readonly settings?: Readonly<Record<string, string>>;
}

const oldest = '15';
const user = 'postgres';

/**
 * A PostgreSQL whose url is that of a superuser, database `postgres`. From `KEYTRAIL_POSTGRES_URL` (a role that may
 * create databases and roles), the machine's own programs, the toolchain folder, or Docker.
 */
export function ensurePostgres(options: PostgresOptions = {}): Promise<ServerHandle> {
  return firstAvailable(
    {
      kind: 'postgres',
      advice: `Install PostgreSQL ${oldest} or newer (Debian, Ubuntu: postgresql; macOS: brew install postgresql), or set KEYTRAIL_POSTGRES_URL.`,
      environment: (url) => environmentServer({ kind: 'postgres', url, oldest, readVersion, defaultPort: 5432 }),
      path: async () => {
        const folders = globSync([
          '/usr/lib/postgresql/*/bin',
          '/usr/pgsql-*/bin',
          '/opt/homebrew/opt/postgresql*/bin',
        ]);
        folders.sort((a, b) => b.localeCompare(a, 'en', { numeric: true }));
        const found = findPrograms(['postgres'], folders).filter((path) => isExecutable(`${dirname(path)}/initdb`));
        return startPostgres(await firstSuitable('postgres with initdb', oldest, found), 'path', options);
      },
      toolchain: async () => startPostgres(await installPostgres(), 'toolchain', options),
      docker: () => startPostgresContainer(options),
    },
    options,
  );
}

async function startPostgres(program: Program, origin: Origin, options: PostgresOptions): Promise<ServerHandle> {
  const identity = unprivilegedIdentity();
  const folder = makeInstanceFolder('postgres', identity);
  const password = randomBytes(18).toString('hex');
  let postgres: string;
  try {
    postgres = await reachableProgram(program.path, origin, folder, identity);
    await initialiseData(postgres, folder, password, identity, options);
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
  const url = (port: number) => `postgres://${user}:${password}@127.0.0.1:${port}/postgres`;
  return startOwnServer({
    kind: 'postgres',
    origin,
    version: program.version,
    folder,
    program: postgres,
    env: program.env,
    ...(identity === undefined ? {} : { identity }),
    detached: options.detached === true,
    haltSignal: 'SIGINT',
    stopSignal: 'SIGQUIT',
    url,
    args: (port) => ['-D', `${folder}/data`, '-h', '127.0.0.1', '-p', String(port), '-k', '', ...settingsOf(options)],
    probe: async (port) => {
      await readVersion(url(port));
    },
  });
}

/** PostgreSQL refuses to run as root, and the user that it runs as instead may not see into the checkout. */
async function reachableProgram(
  program: string,
  origin: Origin,
  folder: string,
  identity: Identity | undefined,
): Promise<string> {
  if (identity === undefined || canReach(program, identity)) return program;
  if (origin !== 'toolchain')
    throw new NotAvailable(`user ${identity.uid}, as whom it would run, cannot reach ${program}`);
  const copy = `${folder}/postgresql`;
  await cp(dirname(dirname(program)), copy, { recursive: true, verbatimSymlinks: true });
  return `${copy}/bin/postgres`;
}

async function initialiseData(
  postgres: string,
  folder: string,
  password: string,
  identity: Identity | undefined,
  options: PostgresOptions,
): Promise<void> {
  const passwordFile = `${folder}/password`;
  await writeFile(passwordFile, password, { mode: 0o600 });
  if (identity !== undefined) await chown(passwordFile, identity.uid, identity.gid);
  await runCommand(
    `${dirname(postgres)}/initdb`,
    [
      ...['-D', `${folder}/data`, '-U', user, `--pwfile=${passwordFile}`, '--auth=scram-sha-256', '--encoding=UTF8'],
      `--locale=${process.platform === 'darwin' ? 'C' : 'C.UTF-8'}`,
      ...(options.fsync === true ? [] : ['--no-sync']),
    ],
    { cwd: folder, env: baseEnvironment(), ...identity },
  );
  await rm(passwordFile);
}

function settingsOf(options: PostgresOptions): string[] {
  const durability: Record<string, string> = options.fsync === true ? {} : { fsync: 'off', full_page_writes: 'off' };
  const settings = {
    max_connections: '300',
    shared_buffers: '256MB',
    timezone: 'UTC',
    log_timezone: 'UTC',
    ...durability,
    ...options.settings,
  };
  return Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
}

/** Connects once; throws unless the role may create databases and roles. */
async function readVersion(url: string): Promise<string> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5000 });
  client.on('error', () => {});
  try {
    await client.connect();
    const { rows } = await client.query<{ version: string; suits: boolean }>(
      `SELECT current_setting('server_version') AS version, rolsuper OR (rolcreatedb AND rolcreaterole) AS suits
         FROM pg_roles WHERE rolname = current_user`,
    );
    if (rows[0]?.suits !== true) throw new Error('its role may not create databases and roles');
    return rows[0].version.split(' ')[0] ?? '';
  } finally {
    await client.end();
  }
}

function startPostgresContainer(options: PostgresOptions): Promise<ServerHandle> {
  const password = randomBytes(18).toString('hex');
  const url = (port: number) => `postgres://${user}:${password}@127.0.0.1:${port}/postgres`;
  return startContainer({
    kind: 'postgres',
    image: process.env.KEYTRAIL_POSTGRES_IMAGE || 'postgres:18',
    containerPort: 5432,
    detached: options.detached === true,
    env: { POSTGRES_PASSWORD: password, POSTGRES_INITDB_ARGS: '--locale=C.UTF-8 --encoding=UTF8' },
    command: settingsOf(options),
    url,
    readVersion,
  });
}
