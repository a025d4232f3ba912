import { globSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { progress } from '../progress.ts';
import { type Program, programVersion } from '../servers/programs-on-path.ts';
import { NotAvailable } from '../servers/server.ts';
import { isOlder } from '../servers/version.ts';
import { PrivateApt, readAptSources, releaseCodename } from './apt.ts';
import { toolchainPart } from './toolchain.ts';

/** Redis of the machine's own release, unpacked into the toolchain folder; throws {@link NotAvailable} when it cannot be had. */
export async function installRedis(oldest: string): Promise<Program> {
  const codename = releaseCodename();
  try {
    const folder = await toolchainPart(`redis-${codename}-${process.arch}`, async (partial) => {
      progress(`fetching Redis into .toolchain (packages of ${codename}, some 12 MB of lists and programs)`);
      const apt = await PrivateApt.open(`${partial}/apt`, readAptSources(codename));
      await apt.unpack(await apt.missingFor(['redis-server', 'redis-tools']), `${partial}/root`);
      await rm(`${partial}/apt`, { recursive: true });
    });
    return await redisIn(`${folder}/root`, oldest);
  } catch (error) {
    throw new NotAvailable(`redis-server from the archive of ${codename}: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

async function redisIn(root: string, oldest: string): Promise<Program> {
  const path = `${root}/usr/bin/redis-server`;
  const env = { LD_LIBRARY_PATH: globSync(`${root}/{usr/,}lib/*-linux-*`).join(':') };
  const version = await programVersion(path, env);
  if (isOlder(version, oldest)) throw new Error(`it is ${version}, ${oldest} or newer is needed`);
  return { path, version, env };
}
