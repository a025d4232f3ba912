import { spawn } from 'node:child_process';
import { accessSync, constants, existsSync, mkdirSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { checkoutFolder, toolchainFolder } from '@keytrail/local';

/** The programs that make the load: both tell every answer that was not OK. */
const programs = {
  ghz: 'github.com/bojand/ghz/cmd/ghz@v0.120.0',
  vegeta: 'github.com/tsenart/vegeta/v12@v12.12.0',
} as const;

export type LoadProgram = keyof typeof programs;

export class LoadProgramMissing extends Error {
  override readonly name = 'LoadProgramMissing';
}

/** The path of a load program: of PATH, else of the toolchain folder, else built into it with Go. Throws LoadProgramMissing. */
export async function ensureLoadProgram(name: LoadProgram, progress: (line: string) => void): Promise<string> {
  const onPath = findOnPath(name);
  if (onPath) return onPath;
  const folder = join(toolchainFolder, 'go', 'bin');
  const built = join(folder, name);
  if (existsSync(built)) return built;
  const go = findOnPath('go');
  const byHand = `install ${name} by hand (go install ${programs[name]}) and have it on PATH`;
  if (!go) throw new LoadProgramMissing(`neither ${name} nor Go is on PATH: install Go, or ${byHand}`);
  progress(`building ${name} (once, into .toolchain/go/bin)`);
  mkdirSync(folder, { recursive: true });
  const failure = await run(go, ['install', programs[name]], { ...process.env, GOBIN: folder, GOFLAGS: '' });
  if (failure !== undefined || !existsSync(built))
    throw new LoadProgramMissing(`go install ${programs[name]} failed; ${byHand}\n${failure ?? ''}`);
  return built;
}

/** The path of a program on PATH, if it is there. */
export function findOnPath(name: string): string | undefined {
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const file = join(folder, name);
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      // Not in this folder.
    }
  }
  return undefined;
}

async function run(command: string, args: string[], env: NodeJS.ProcessEnv): Promise<string | undefined> {
  const child = spawn(command, args, { cwd: checkoutFolder, env, stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  const code = await new Promise<number | null>((resolve) => {
    child.once('error', () => resolve(null));
    child.once('close', resolve);
  });
  return code === 0 ? undefined : said.split('\n').slice(-10).join('\n');
}
