import { existsSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { progress } from '../progress.ts';
import { runCommand } from '../run-command.ts';
import { findPrograms, type Program, programVersion } from '../servers/programs-on-path.ts';
import { NotAvailable } from '../servers/server.ts';
import { isOlder } from '../servers/version.ts';
import { PrivateApt, readAptSources, releaseCodename } from './apt.ts';
import { toolchainPart } from './toolchain.ts';

/** For `go install`, where no archive has a version that is new enough. */
const goVersion = 'v2.15.2';

/** Releases whose nats-server is new enough and runs on somewhat older machines (it needs libc6 only), newest last. */
const newerReleases: Readonly<Record<string, readonly string[]>> = {
  bullseye: [],
  bookworm: ['trixie'],
  trixie: ['trixie'],
  forky: ['forky'],
  sid: ['sid'],
  jammy: ['noble', 'plucky', 'questing'],
  noble: ['noble', 'plucky', 'questing'],
};

/** NATS in the toolchain folder, from a newer release's archive or by Go; throws {@link NotAvailable} when neither works. */
export async function installNats(oldest: string): Promise<Program> {
  const refused: string[] = [];
  for (const way of [fromArchive, fromGo]) {
    try {
      return await way(oldest);
    } catch (error) {
      refused.push((error as Error).message);
    }
  }
  throw new NotAvailable(refused.join('; '));
}

async function fromArchive(oldest: string): Promise<Program> {
  const codename = releaseCodename();
  const own = readAptSources(codename).find((source) => source.suite === codename);
  if (own === undefined) throw new NotAvailable(`no apt source of ${codename}`);
  const folder = await toolchainPart(`nats-${codename}-${process.arch}`, async (partial) => {
    const refused: string[] = [];
    for (const suite of newerReleases[codename] ?? [codename]) {
      progress(`fetching NATS into .toolchain (package of ${suite}, some 15 MB of lists and program)`);
      try {
        // `main` is where Debian has it, `universe` where Ubuntu does.
        const components = own.components.filter((component) => component === 'main' || component === 'universe');
        const apt = await PrivateApt.open(`${partial}/apt`, [{ ...own, suite, components }]);
        const version = await apt.candidateVersion('nats-server');
        if (version === undefined || isOlder(version, oldest))
          throw new Error(`has ${version ?? 'no nats-server'}, ${oldest} or newer is needed`);
        await apt.unpack(['nats-server'], `${partial}/root`);
        await natsIn(`${partial}/root`);
        return;
      } catch (error) {
        refused.push(`${suite}: ${(error as Error).message}`);
        await rm(`${partial}/root`, { recursive: true, force: true });
      } finally {
        await rm(`${partial}/apt`, { recursive: true, force: true });
      }
    }
    throw new NotAvailable(
      `nats-server from a newer archive: ${refused.join('; ') || `no suite known for ${codename}`}`,
    );
  });
  return natsIn(`${folder}/root`);
}

async function natsIn(root: string): Promise<Program> {
  const path = [`${root}/usr/sbin/nats-server`, `${root}/usr/bin/nats-server`].find((candidate) =>
    existsSync(candidate),
  );
  if (path === undefined) throw new Error('the package holds no nats-server');
  return { path, version: await programVersion(path), env: {} };
}

async function fromGo(): Promise<Program> {
  const go = findPrograms(['go'])[0];
  if (go === undefined) throw new NotAvailable('no go on PATH');
  const folder = await toolchainPart(`nats-${goVersion}-go-${process.arch}`, async (partial) => {
    progress(`building NATS ${goVersion} with Go into .toolchain (a minute or two)`);
    await mkdir(`${partial}/bin`);
    const env = { HOME: homedir(), ...process.env, GOBIN: `${partial}/bin`, GOFLAGS: '-trimpath', CGO_ENABLED: '0' };
    await runCommand(go, ['install', `github.com/nats-io/nats-server/v2@${goVersion}`], { env, cwd: partial });
  });
  const path = `${folder}/bin/nats-server`;
  return { path, version: await programVersion(path), env: {} };
}
