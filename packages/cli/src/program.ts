import { buildIdentity } from '@keytrail/telemetry';
import { Command, CommanderError, Option } from 'commander';
import { parseLimit } from './arguments.ts';
import { addConversation } from './commands/conversation.ts';
import { addDeadLetters } from './commands/dead-letters.ts';
import { addDevices } from './commands/devices.ts';
import { addDoctor } from './commands/doctor.ts';
import { addExplain } from './commands/explain.ts';
import { addFence } from './commands/fence.ts';
import { addMigrate } from './commands/migrate.ts';
import { addOnline } from './commands/online.ts';
import { addRequests } from './commands/requests.ts';
import { addSessions } from './commands/sessions.ts';
import { addTrace } from './commands/trace.ts';
import { type ConnectionOptions, openConnections, serviceNames, targetVariable } from './connection.ts';
import { exitCodes, UsageError } from './exit-codes.ts';
import { describeFailure } from './failure.ts';
import { acceptBehindCommands } from './options-of-all.ts';
import type { RunCommand, Terminal } from './terminal.ts';

export type { Terminal } from './terminal.ts';

interface GlobalOptions extends ConnectionOptions {
  readonly json?: boolean;
}

const afterHelp = `
Targets are gRPC addresses, as 127.0.0.1:50051 or dns:///session:50051; the connection is not encrypted by this command.
The token is an operator's (scope keytrail:operator). It is never given as an argument: use KEYTRAIL_OPERATOR_TOKEN, --token-file or KEYTRAIL_OPERATOR_TOKEN_FILE.
What is asked of a service is written to its audit log, also where it only looks.
Options of the program stand before or behind a command; targets before it where it has an option of that name (--session and --conversation, for ids).

Data goes to stdout, words to stderr.
Exit codes: 0 ok, 1 refused or failed (the reason, its page and the trace id are on stderr), 2 usage, 3 unreachable, 4 not whole.`;

/** What a service refuses for what the command line said, as the command itself does where it can tell. */
const refusedUsage: ReadonlySet<string> = new Set([
  'INVALID_FIELD',
  'TOKEN_MISSING',
  'TOKEN_INVALID',
  'CALLER_NOT_ALLOWED',
]);

/** Runs the command line `args` (without node and script), and returns the exit code. */
export async function run(args: readonly string[], terminal: Terminal): Promise<number> {
  let exitCode: number = exitCodes.ok;
  const program = describeProgram(terminal, (code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync(args, { from: 'user' });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
    if (error instanceof UsageError) {
      terminal.say(`keytrail: ${error.message}`);
      return exitCodes.usage;
    }
    const { answered, reason, text } = describeFailure(error);
    terminal.say(`keytrail: ${answered ? text : `nothing answered: ${text}`}`);
    if (refusedUsage.has(reason)) return exitCodes.usage;
    return answered ? exitCodes.refused : exitCodes.unreachable;
  }
}

function describeProgram(terminal: Terminal, endWith: (exitCode: number) => void): Command {
  const program = new Command('keytrail')
    .description('Operates a Keytrail: why a key is missing, and what the fleet is doing about it.')
    .option('--token-file <file>', "file with an operator's token (or KEYTRAIL_OPERATOR_TOKEN)")
    .addOption(
      new Option('--timeout <duration>', 'longest time that a call may take')
        .argParser(parseLimit)
        .default(10_000, '10s'),
    )
    .option('--json', 'print data as JSON')
    .addHelpText('after', afterHelp)
    .exitOverride()
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({ writeOut: terminal.out, writeErr: terminal.say });
  for (const service of serviceNames)
    program.option(`--${service} <target>`, `gRPC target of the service ${service} (${targetVariable(service)})`);

  const runCommand: RunCommand = async (work) => {
    const options = program.opts<GlobalOptions>();
    const { environment } = terminal;
    const connections = openConnections(options, environment);
    const output = {
      json: options.json ?? false,
      out: (text: string) => terminal.out(`${text}\n`),
      say: (text: string) => terminal.say(`${text}\n`),
    };
    try {
      const ended: unknown = await work({ connections, options, environment, output, columns: terminal.columns });
      if (typeof ended === 'number') endWith(ended);
    } finally {
      connections.close();
    }
  };

  addExplain(program, runCommand);
  addDoctor(program, runCommand);
  addFence(program, runCommand);
  addMigrate(program, runCommand);
  addConversation(program, runCommand);
  addDeadLetters(program, runCommand);
  addDevices(program, runCommand);
  addOnline(program, runCommand);
  addSessions(program, runCommand);
  addRequests(program, runCommand);
  addTrace(program, runCommand);
  acceptBehindCommands(program);
  // Of the program alone: behind a command it would be an option of that.
  program.option('--version', 'print the version and the build').on('option:version', () => {
    terminal.out(`${versionText()}\n`);
    throw new CommanderError(exitCodes.ok, 'keytrail.version', 'told');
  });
  pointToHelp(program, program.name());
  return program;
}

/** Below what is wrong with a command line stands one line: a page of help would scroll it away. */
function pointToHelp(command: Command, path: string): void {
  command.showHelpAfterError(`(${path} --help says what can be given)`);
  for (const further of command.commands) pointToHelp(further, `${path} ${further.name()}`);
}

/** The build is told as rows and answers tell theirs: the same words are the same sources. */
function versionText(): string {
  const { version, writerBuild } = buildIdentity('cli');
  return `keytrail ${version}, build ${writerBuild}`;
}
