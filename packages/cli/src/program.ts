import { Command, CommanderError, Option } from 'commander';
import { parseCount, parseDuration, parseNote, parseStates, stateNames } from './arguments.ts';
import { type ConnectionOptions, type Environment, type Operator, withOperator } from './connection.ts';
import { exitCodes, UsageError } from './exit-codes.ts';
import {
  cancelRequest,
  describeFailure,
  type ListOptions,
  listRequests,
  nudgeRequest,
  type Output,
  replayRequest,
  showRequest,
} from './requests.ts';

/** Where the process's ends are: tests and main give them. */
export interface Terminal {
  readonly environment: Environment;
  out(text: string): void;
  say(text: string): void;
}

interface GlobalOptions extends ConnectionOptions {
  readonly json?: boolean;
}

const afterHelp = `
The target is a gRPC address, as 127.0.0.1:50051 or dns:///session:50051; the connection is not encrypted by this command.
The token is an operator's (scope keytrail:operator). It is never given as an argument: use KEYTRAIL_OPERATOR_TOKEN or --token-file.
Every command is written to the audit log of the service, also one that only looks.

Data goes to stdout, words to stderr.
Exit codes: 0 ok, 1 refused or failed (the reason and the trace id are on stderr), 2 usage, 3 unreachable.`;

/** Runs the command line `args` (without node and script), and returns the exit code. */
export async function run(args: readonly string[], terminal: Terminal): Promise<number> {
  const program = describeProgram(terminal);
  try {
    await program.parseAsync(args, { from: 'user' });
    return exitCodes.ok;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
    if (error instanceof UsageError) {
      terminal.say(`keytrail: ${error.message}`);
      return exitCodes.usage;
    }
    const { answered, text } = describeFailure(error);
    terminal.say(`keytrail: ${answered ? text : `nothing answered: ${text}`}`);
    return answered ? exitCodes.refused : exitCodes.unreachable;
  }
}

function describeProgram(terminal: Terminal): Command {
  const program = new Command('keytrail')
    .description('Operates a Keytrail: key requests that are open, stuck or ended.')
    .option('--session <target>', 'gRPC target of the service session (KEYTRAIL_SESSION_TARGET)')
    .option('--token-file <file>', "file with an operator's token (or KEYTRAIL_OPERATOR_TOKEN)")
    .addOption(
      new Option('--timeout <duration>', 'longest time that a call may take')
        .argParser(parseDuration)
        .default(10_000, '10s'),
    )
    .option('--json', 'print data as JSON')
    .addHelpText('after', afterHelp)
    .exitOverride()
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({ writeOut: terminal.out, writeErr: terminal.say })
    .showHelpAfterError();

  async function asked(work: (operator: Operator, output: Output) => Promise<void>): Promise<void> {
    const options = program.opts<GlobalOptions>();
    const output = {
      json: options.json ?? false,
      out: (text: string) => terminal.out(`${text}\n`),
      say: (text: string) => terminal.say(`${text}\n`),
    };
    await withOperator(options, terminal.environment, (operator) => work(operator, output));
  }

  const requests = program.command('requests').description('key requests of devices').helpCommand(false);
  requests
    .command('list')
    .description('lists key requests, oldest first; without --state those that are open')
    .option(
      '--state <states>',
      `of ${stateNames.join(', ').toLowerCase()}: some, separated by commas, or any`,
      parseStates,
    )
    .option('--conversation <id>', 'of the sessions of one conversation')
    .option('--user <id>', 'of the devices of one user')
    .option('--device <id>', 'of one device of --user')
    .option('--older-than <duration>', 'that were made longer ago, as 90s, 5m, 2h or 1d', parseDuration)
    .option('--limit <count>', 'at most so many', parseCount, 100)
    .action((options: ListOptions) => asked((operator, output) => listRequests(operator, options, output)));
  requests
    .command('show <id>')
    .description('shows one key request with its offers')
    .action((id: string) => asked((operator, output) => showRequest(operator, id, output)));
  requests
    .command('nudge <id>')
    .description('has an open key request looked at now')
    .action((id: string) => asked((operator, output) => nudgeRequest(operator, id, output)));
  requests
    .command('cancel <id>')
    .description('cancels an open key request; its requester is told, and may ask again')
    .requiredOption('--note <text>', 'why, for the audit log', parseNote)
    .action((id: string, options: { note: string }) =>
      asked((operator, output) => cancelRequest(operator, id, options, output)),
    );
  requests
    .command('replay <id>')
    .description('opens a key request anew that ended without a key: all its holders are asked again')
    .action((id: string) => asked((operator, output) => replayRequest(operator, id, output)));
  return program;
}
