import { existsSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { toolchainFolder } from '../checkout.ts';
import { exclusively } from '../exclusively.ts';

/**
 * A folder of the toolchain, filled once by `fill`. It appears complete or not at all, and processes that ask for it at
 * the same time wait for the one that fills it. The name carries the pinned version: another pin is another folder.
 */
export async function toolchainPart(name: string, fill: (folder: string) => Promise<void>): Promise<string> {
  const folder = `${toolchainFolder}/${name}`;
  if (existsSync(folder)) return folder;
  await mkdir(toolchainFolder, { recursive: true });
  return exclusively(`${folder}.lock`, async () => {
    if (existsSync(folder)) return folder;
    const partial = `${folder}.partial`;
    await rm(partial, { recursive: true, force: true });
    await mkdir(partial);
    try {
      await fill(partial);
      await rename(partial, folder);
    } finally {
      await rm(partial, { recursive: true, force: true });
    }
    return folder;
  });
}

/** Writes the small package.json that keeps npm from looking for a project further up. */
export async function writeEmptyPackage(folder: string): Promise<void> {
  await writeFile(`${folder}/package.json`, '{"private":true}\n');
}
