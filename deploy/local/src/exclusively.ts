import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { progress } from './progress.ts';
import { isAlive } from './supervision/process-tree.ts';

/** Runs `work` while no other process of this machine runs work under the same lock folder. */
export async function exclusively<T>(lockFolder: string, work: () => Promise<T>): Promise<T> {
  await takeLock(lockFolder);
  try {
    return await work();
  } finally {
    await rm(lockFolder, { recursive: true, force: true });
  }
}

async function takeLock(lockFolder: string): Promise<void> {
  for (let said = false; ; ) {
    try {
      await mkdir(lockFolder);
      await writeFile(`${lockFolder}/pid`, String(process.pid));
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const holder = Number(await readFile(`${lockFolder}/pid`, 'utf8').catch(() => ''));
    if (holder > 0 && !isAlive(holder)) {
      // Renaming first: of several who find the dead holder, one gets the folder.
      const dead = `${lockFolder}.dead.${process.pid}`;
      await rename(lockFolder, dead).then(
        () => rm(dead, { recursive: true, force: true }),
        () => {},
      );
      continue;
    }
    if (!said) progress(`waiting for process ${holder || 'unknown'}, which holds ${lockFolder}`);
    said = true;
    await delay(200);
  }
}
