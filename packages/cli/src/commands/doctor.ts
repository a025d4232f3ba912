import { setTimeout as pause } from 'node:timers/promises';
import { checkCatalogue } from '@keytrail/diagnosis/catalogue';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { parseDuration } from '../arguments.ts';
import { exitCodes, UsageError } from '../exit-codes.ts';
import type { RunCommand, Session } from '../terminal.ts';

interface DoctorOptions {
  readonly only?: string[];
  readonly skip?: string[];
  readonly output?: 'table' | 'json';
  /** In milliseconds. */
  readonly wait?: number;
  readonly databaseUrl: string[];
  readonly direct?: boolean;
  readonly showSql?: boolean;
}

const afterHelp = `
Every process behind the targets is asked by itself: names are resolved to all their addresses.
KEYTRAIL_TOKEN_COMMAND, a command that prints a token for the user and the device it is given as arguments, allows the reproduction.
KEYTRAIL_DATABASE_URL_IDENTITY_KEYS, _SESSION and _CONVERSATION do what --database-url does, and are not seen by others on the machine.

Exit codes: 0 nothing is wrong (checks may be skipped), 1 a check fails, 2 usage, 3 nothing at all answered, 4 a check warns,
5 something could not be found out. 1 goes before 5, and 5 before 4.
Each check has a page: docs/checks/README.md.`;

export function addDoctor(program: Command, run: RunCommand): void {
  program
    .command('doctor')
    .description('checks the fleet: what runs, what it stands on, and whether keys get where they should')
    .option('--only <codes>', 'run these alone, separated by commas', parseCodes)
    .option('--skip <codes>', 'run all but these', parseCodes)
    .addOption(new Option('-o, --output <form>', 'how findings are printed').choices(['table', 'json']))
    .option('--wait <duration>', 'look again until nothing fails and all is known, at most so long', parseDuration)
    .option(
      '--database-url <service=url>',
      'read the database of a service that does not answer; for each of them',
      (text: string, before: string[]) => [...before, text],
      [],
    )
    .option('--direct', 'read the databases also where services answer')
    .option('--show-sql', 'print the SQL that services ran, too')
    .addHelpText('after', afterHelp)
    .action((options: DoctorOptions) => run((session) => doctor(session, options)));
}

function parseCodes(text: string): string[] {
  const codes = text.split(',').map((code) => code.trim().toUpperCase().replaceAll('-', '_'));
  const unknown = codes.find((code) => !checkCatalogue.some((entry) => entry.code === code));
  if (unknown !== undefined)
    throw new InvalidArgumentError(`there is no check ${unknown}; docs/checks/README.md lists them`);
  return codes;
}

async function doctor(session: Session, options: DoctorOptions): Promise<number> {
  // Loaded here alone: other commands have no use for databases and the SDK.
  const { databaseUrls } = await import('../doctor/databases.ts');
  const { examine, targetsOf } = await import('../doctor/examine.ts');
  const { exitCodeOf } = await import('../doctor/finding.ts');
  const { countStatuses, findingsJson, findingsTable, statusText } = await import('../doctor/rendering.ts');
  const { output, environment, columns } = session;
  const urls = databaseUrls(options.databaseUrl, environment);
  if (targetsOf(session).size === 0 && urls.size === 0)
    throw new UsageError(
      'nothing to ask: give the targets of the services (--session <host:port> …), or --database-url',
    );
  const codes = new Set(
    checkCatalogue
      .map(({ code }) => code)
      .filter((code) => (options.only?.includes(code) ?? true) && !options.skip?.includes(code)),
  );
  if (codes.size === 0) throw new UsageError('--only and --skip leave nothing to check');
  const until = Date.now() + (options.wait ?? 0);
  for (;;) {
    const { findings, reached } = await examine(session, {
      codes,
      direct: options.direct ?? false,
      databaseUrls: urls,
      told: ({ code, status }) => output.say(`${statusText(status, false, 7)} ${code}`),
    });
    const exitCode = reached ? exitCodeOf(findings) : exitCodes.unreachable;
    const settled = exitCode === 0 || exitCode === 4;
    if (!settled && Date.now() < until) {
      output.say(`${countStatuses(findings)}; looking again`);
      await pause(Math.min(1_000, until - Date.now()));
      continue;
    }
    const json = options.output === 'json' || (output.json && options.output === undefined);
    const coloured = columns !== undefined && !environment.NO_COLOR;
    output.out(
      json
        ? findingsJson(findings, exitCode)
        : findingsTable(findings, { coloured, sql: options.showSql ? 'all' : 'direct' }),
    );
    output.say(countStatuses(findings));
    return exitCode;
  }
}
