import { spawn } from 'node:child_process';

export interface RunCommandOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly uid?: number;
  readonly gid?: number;
  readonly timeoutMs?: number;
}

/** A command that could not be started, or ended with another code than 0. */
export class CommandFailed extends Error {
  override readonly name = 'CommandFailed';
  readonly output: string;
  constructor(message: string, output: string) {
    super(output === '' ? message : `${message}\n${lastLines(output, 20)}`);
    this.output = output;
  }
}

/** Runs a command to its end and returns its stdout; throws {@link CommandFailed} with everything it printed. */
export async function runCommand(
  command: string,
  args: readonly string[],
  options: RunCommandOptions = {},
): Promise<string> {
  const { timeoutMs, ...rest } = options;
  const child = spawn(command, args, {
    ...rest,
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(timeoutMs === undefined ? {} : { timeout: timeoutMs }),
  });
  let stdout = '';
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    output += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    output += text;
  });
  const outcome = await new Promise<string | undefined>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('close', (code, signal) => resolve(code === 0 ? undefined : `ended with ${signal ?? `code ${code}`}`));
  });
  if (outcome !== undefined) throw new CommandFailed(`${[command, ...args].join(' ')}: ${outcome}`, output);
  return stdout;
}

/** The last lines of a text, without the empty ones at its end. */
export function lastLines(text: string, count: number): string {
  return text.trimEnd().split('\n').slice(-count).join('\n');
}
