import { chmod, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { brotliDecompress } from 'node:zlib';
import { progress } from '../progress.ts';
import { runCommand } from '../run-command.ts';
import { type Program, programVersion } from '../servers/programs-on-path.ts';
import { NotAvailable } from '../servers/server.ts';
import { toolchainPart, writeEmptyPackage } from './toolchain.ts';

/** The version of the npm package that carries a headless Chromium and the libraries that a bare machine lacks. */
const packageName = '@sparticuz/chromium';
const packageVersion = '153.0.0';
const fetchTimeoutMs = 180_000;
const unbrotli = promisify(brotliDecompress);

/** A headless Chromium from npm in the toolchain folder; throws {@link NotAvailable} when it cannot be had. */
export async function installChromium(): Promise<Program> {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    throw new NotAvailable(`npm has no Chromium for ${process.platform}-${process.arch}`);
  try {
    const folder = await toolchainPart(`chromium-${packageVersion}`, async (partial) => {
      progress(`fetching Chromium into .toolchain (npm package ${packageName}, some 70 MB, 210 MB unpacked)`);
      const download = `${partial}/download`;
      await mkdir(download);
      await writeEmptyPackage(download);
      await runCommand(
        'npm',
        [
          'install',
          '--prefix',
          download,
          '--ignore-scripts',
          '--omit=optional',
          '--no-save',
          '--no-package-lock',
          '--no-audit',
          '--no-fund',
          `${packageName}@${packageVersion}`,
        ],
        { timeoutMs: fetchTimeoutMs },
      );
      const packed = `${download}/node_modules/${packageName}/bin`;
      await unpack(`${packed}/chromium.br`, `${partial}/chromium`);
      await chmod(`${partial}/chromium`, 0o755);
      for (const part of ['al2023', 'fonts']) {
        await unpack(`${packed}/${part}.tar.br`, `${partial}/${part}.tar`);
        await runCommand('tar', ['-xf', `${partial}/${part}.tar`, '-C', partial]);
        await rm(`${partial}/${part}.tar`);
      }
      await writeFile(`${partial}/fonts.conf`, fontsOf(partial.replace(/\.partial$/, '')));
      await rm(download, { recursive: true });
    });
    const path = `${folder}/chromium`;
    const env = { LD_LIBRARY_PATH: `${folder}/lib`, FONTCONFIG_PATH: folder };
    return { path, version: await programVersion(path, env), env };
  } catch (error) {
    throw new NotAvailable(`${packageName}: ${(error as Error).message}`, { cause: error });
  }
}

/** The package's own names folders of the machines that it is made for; without any font no text is laid out. */
function fontsOf(folder: string): string {
  return `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>${folder}/fonts</dir><cachedir>${folder}/fonts-cache</cachedir></fontconfig>
`;
}

async function unpack(from: string, to: string): Promise<void> {
  await writeFile(to, await unbrotli(await readFile(from)));
}
