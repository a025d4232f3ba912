import { parseArgs } from 'node:util';
import { type MigrationState, MigrationsRefused, migrateDatabase, migrationState } from '../index.ts';

const help = `Applies or compares the migrations of one service.

usage: migrate.ts deploy|status --url <postgres url> --migrations <folder> [--json]

  deploy   apply what the database lacks; refuses a database that is ahead or diverged
  status   compare in both directions

exit codes
  0  deploy: done; status: current
  2  wrong usage
  3  behind: the database lacks migrations
  4  ahead: the database has migrations that this build does not know
  5  diverged: both, or edited or failed migrations
  1  anything else, e.g. the database cannot be reached
`;

const exitCodes = { current: 0, behind: 3, ahead: 4, diverged: 5 } as const;

function parse() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        url: { type: 'string' },
        migrations: { type: 'string' },
        json: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
  } catch (error) {
    return usage((error as Error).message);
  }
}

function usage(problem: string): never {
  process.stderr.write(`${problem}\n\n${help}`);
  process.exit(2);
}

function describe(state: MigrationState): string {
  const names = (['missing', 'unknown', 'edited', 'failed'] as const).flatMap((kind) =>
    state[kind].map((name) => `  ${kind}  ${name}`),
  );
  return [state.state, ...names].join('\n');
}

const { values, positionals } = parse();
if (values.help) {
  process.stdout.write(help);
  process.exit(0);
}
const [command] = positionals;
if ((command !== 'deploy' && command !== 'status') || positionals.length > 1) usage('say deploy or status');
if (!values.url || !values.migrations) usage('--url and --migrations are required');
const options = { url: values.url, migrations: values.migrations };

function print(answer: object, text: string): void {
  process.stdout.write(values.json ? `${JSON.stringify(answer)}\n` : `${text}\n`);
}

try {
  if (command === 'deploy') {
    const applied = await migrateDatabase(options);
    print({ applied }, applied.length > 0 ? applied.map((name) => `applied ${name}`).join('\n') : 'nothing to apply');
  } else {
    const state = await migrationState(options);
    print(state, describe(state));
    process.exitCode = exitCodes[state.state];
  }
} catch (error) {
  if (error instanceof MigrationsRefused) {
    print(error.state, describe(error.state));
    process.exitCode = exitCodes[error.state.state];
  } else {
    const message = error instanceof Error ? error.message || (error as { code?: string }).code : String(error);
    print({ error: message }, `failed: ${message}`);
    process.exitCode = 1;
  }
}
