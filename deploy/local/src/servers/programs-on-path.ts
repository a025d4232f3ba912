import { accessSync, constants, statSync } from 'node:fs';
import { delimiter } from 'node:path';
import { CommandFailed, runCommand } from '../run-command.ts';
import { NotAvailable } from './server.ts';
import { isOlder, versionIn } from './version.ts';

/** A program that was found, and runs. */
export interface Program {
  readonly path: string;
  readonly version: string;
  /** What the program needs in its environment beyond {@link baseEnvironment}. */
  readonly env: Readonly<Record<string, string>>;
}

/** What every program started here gets; anything else must be named. */
export function baseEnvironment(): Record<string, string> {
  const kept = ['PATH', 'HOME', 'TMPDIR', 'TZ', 'LD_LIBRARY_PATH', 'SSL_CERT_FILE', 'NODE_EXTRA_CA_CERTS'];
  return Object.fromEntries(
    kept.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]])),
  );
}

/** All files of these names on PATH and in further folders, in order. */
export function findPrograms(names: readonly string[], moreFolders: readonly string[] = []): string[] {
  const folders = [...(process.env.PATH ?? '').split(delimiter), ...moreFolders].filter((folder) =>
    folder.startsWith('/'),
  );
  return folders.flatMap((folder) => names.map((name) => `${folder}/${name}`)).filter(isExecutable);
}

/** Whether there is a file that may be run. */
export function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** The first of the paths that runs and is new enough; throws {@link NotAvailable} saying what was wrong with each. */
export async function firstSuitable(what: string, oldest: string, paths: readonly string[]): Promise<Program> {
  const refused: string[] = [];
  for (const path of paths) {
    try {
      const version = await programVersion(path);
      if (!isOlder(version, oldest)) return { path, version, env: {} };
      refused.push(`${path} is ${version}, ${oldest} or newer is needed`);
    } catch (error) {
      refused.push(error instanceof Error ? error.message : String(error));
    }
  }
  throw new NotAvailable(refused.length === 0 ? `no ${what} on PATH` : refused.join('; '));
}

/** Asks a program for its version. */
export async function programVersion(path: string, env: Readonly<Record<string, string>> = {}): Promise<string> {
  const output = await runCommand(path, ['--version'], { env: { ...baseEnvironment(), ...env }, timeoutMs: 10_000 });
  const version = versionIn(output);
  if (version === undefined) throw new CommandFailed(`${path} --version printed no version`, output);
  return version;
}
