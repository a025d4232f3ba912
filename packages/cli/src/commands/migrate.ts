import { fileURLToPath } from 'node:url';
import { type Command, InvalidArgumentError } from 'commander';
import { parseDuration } from '../arguments.ts';
import { exitCodes, UsageError } from '../exit-codes.ts';
import type { Migrated, SchemaFound } from '../migrations.ts';
import type { Output, RunCommand, Session } from '../terminal.ts';

const services = ['identity-keys', 'conversation', 'session'] as const;
type Service = (typeof services)[number];

interface MigrateOptions {
  readonly service?: readonly Service[];
  readonly databaseUrl: string[];
  readonly lockTimeout: number;
  readonly retryFailed?: boolean;
}

interface ResolveOptions extends MigrateOptions {
  readonly applied: string;
}

/** Of a comparison; the highest of all databases counts. */
const codeOfState = { current: exitCodes.ok, behind: 5, ahead: 6, diverged: 7 } as const;

const afterHelp = `
URLs stand in KEYTRAIL_DATABASE_URL_IDENTITY_KEYS, _CONVERSATION and _SESSION, where others on the machine do not see them, or in --database-url.
Databases without a URL are left out. The migrations are those of this checkout or image; nothing is downloaded.

Exit codes: 0 the databases have what this build has, 1 a migration or a database failed, 2 usage, 3 a database cannot be reached,
5 behind: it lacks migrations, 6 ahead: it has some that this build does not know, 7 diverged: both, or edited or failed ones.
Of several databases the highest counts.`;

export function addMigrate(program: Command, run: RunCommand): void {
  const migrate = program
    .command('migrate')
    .description('compares and applies the migrations of the databases; needs no service and no token')
    .addHelpText('after', afterHelp);
  withDatabases(migrate.command('status'))
    .description('compares the migrations of this build with those of the databases, both ways; changes nothing')
    .action((options: MigrateOptions) => run((session) => status(session, options)));
  withDatabases(migrate.command('deploy'))
    .description(
      'applies what databases lack, each migration whole or not at all; touches none that is ahead or diverged',
    )
    .option(
      '--lock-timeout <duration>',
      'longest wait of a migration for a lock; then it fails, and those behind it go on',
      parseDuration,
      30_000,
    )
    .option(
      '--retry-failed',
      'try migrations again that failed: of those nothing remained but unfinished indexes, which are built anew',
    )
    .action((options: MigrateOptions) => run((session) => deploy(session, options)));
  withDatabases(migrate.command('resolve'))
    .description(
      'notes a migration as applied whose row was lost while its schema is there; it is tried before, and noted only when that is refused as made already',
    )
    .requiredOption('--applied <migration>', 'its name; --service names the one database that it is of')
    .option('--lock-timeout <duration>', 'longest wait for a lock of the trial', parseDuration, 30_000)
    .action((options: ResolveOptions) => run((session) => resolve(session, options)));
}

function withDatabases(command: Command): Command {
  return command
    .option('--service <names>', 'these alone, separated by commas', parseServices)
    .option(
      '--database-url <service=url>',
      'URL of the database of a service; for each of them',
      (text: string, before: string[]) => [...before, text],
      [],
    )
    .addHelpText('after', afterHelp);
}

function parseServices(text: string): Service[] {
  const names = text.split(',').map((name) => name.trim());
  const unknown = names.find((name) => !services.includes(name as Service));
  if (unknown !== undefined) throw new InvalidArgumentError(`must be of ${services.join(', ')}`);
  return names as Service[];
}

interface Target {
  readonly service: Service;
  readonly url: string;
  readonly migrations: string;
}

/** Throws UsageError when there is none, or none for a service that was asked for by name. */
async function targetsOf({ environment, output }: Session, options: MigrateOptions): Promise<Target[]> {
  const { databaseUrls, databaseVariable } = await import('../doctor/databases.ts');
  const urls = databaseUrls(options.databaseUrl, environment);
  const targets: Target[] = [];
  for (const service of options.service ?? services) {
    const url = urls.get(service);
    if (url) {
      const migrations = fileURLToPath(new URL(`../../../../services/${service}/prisma/migrations`, import.meta.url));
      targets.push({ service, url, migrations });
    } else if (options.service) {
      throw new UsageError(
        `no database of ${service}: give ${databaseVariable(service)} or --database-url ${service}=…`,
      );
    } else {
      output.say(`${service}: left out, there is no ${databaseVariable(service)}`);
    }
  }
  if (targets.length === 0)
    throw new UsageError(`no database: give ${services.map((service) => databaseVariable(service)).join(', ')}`);
  return targets;
}

async function status(session: Session, options: MigrateOptions): Promise<number> {
  const { compare, describeFound, foundTable } = await import('../migrations.ts');
  const found: (SchemaFound & { service: Service })[] = [];
  for (const { service, ...target } of await targetsOf(session, options))
    found.push({ service, ...(await compare(target)) });
  const { json, out } = session.output;
  if (json) out(JSON.stringify({ databases: found }, undefined, 2));
  else out([foundTable(found), ...found.flatMap(describeFound)].join('\n'));
  return worst(found.map(codeOf));
}

async function deploy(session: Session, options: MigrateOptions): Promise<number> {
  const { apply } = await import('../migrations.ts');
  const { lockTimeout: lockTimeoutMs, retryFailed = false } = options;
  const { json, out, say } = session.output;
  const done: (Migrated & { service: Service })[] = [];
  for (const { service, ...target } of await targetsOf(session, options)) {
    const migrated = await apply({
      ...target,
      lockTimeoutMs,
      retryFailed,
      onWait: () => say(`${service}: another migration is at work; waiting for it`),
      onPlan: (names) => say(`${service}: applying ${names.join(', ')}`),
    });
    done.push({ service, ...migrated });
    if (!json) tell(session.output, service, migrated);
  }
  if (json) out(JSON.stringify({ databases: done }, undefined, 2));
  return worst(done.map(codeOf));
}

async function resolve(session: Session, options: ResolveOptions): Promise<number> {
  const { resolveApplied } = await import('../migrations.ts');
  if (options.service?.length !== 1) throw new UsageError('--service: name the one database that the migration is of');
  const [{ service, ...target }] = (await targetsOf(session, options)) as [Target];
  const { applied: name, lockTimeout: lockTimeoutMs } = options;
  const { json, out, say } = session.output;
  const onWait = () => say(`${service}: another migration is at work; waiting for it`);
  const { applied: noted, ...found } = await resolveApplied({ ...target, name, lockTimeoutMs, onWait });
  if (json) out(JSON.stringify({ databases: [{ service, noted, ...found }] }, undefined, 2));
  else if (found.problem) say(`${service}: ${found.problem}`);
  else
    out(
      `${service}: ${name} is noted as applied; doctor --only CONSTRAINTS,MIGRATIONS tells whether all of it is there`,
    );
  return codeOf(found);
}

function tell({ out, say }: Output, service: string, { applied, problem }: Migrated): void {
  for (const name of applied) out(`${service}: applied ${name}`);
  if (problem) say(`${service}: ${problem}`);
  else if (applied.length === 0) out(`${service}: nothing to apply`);
}

function codeOf({ state, unreachable }: Pick<SchemaFound, 'state' | 'unreachable'>): number {
  if (state) return codeOfState[state];
  return unreachable ? exitCodes.unreachable : exitCodes.refused;
}

const worst = (codes: readonly number[]) => Math.max(...codes);
