import { rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { progress } from '../local/src/progress.ts';
import { runCommand } from '../local/src/run-command.ts';
import { findPrograms, firstSuitable, programVersion } from '../local/src/servers/programs-on-path.ts';
import { NotAvailable } from '../local/src/servers/server.ts';
import { isOlder } from '../local/src/servers/version.ts';
import { PrivateApt, readAptSources, releaseCodename } from '../local/src/toolchain/apt.ts';
import { toolchainPart } from '../local/src/toolchain/toolchain.ts';

/** What deploy/prometheus/README.md promises the rules to work with. */
const oldest = '2.40';
/** For `go install`, where no archive has one. */
const goVersion = 'v0.316.0';

/** The path of a promtool: of the PATH, of the machine's archives (19 MB), or built by Go (minutes). Throws {@link NotAvailable}. */
export async function findPromtool(): Promise<string> {
  const refused: string[] = [];
  for (const way of [fromPath, fromArchive, fromGo]) {
    try {
      return await way();
    } catch (error) {
      refused.push((error as Error).message);
    }
  }
  throw new NotAvailable(`no promtool: ${refused.join('; ')}`);
}

async function fromPath(): Promise<string> {
  return (await firstSuitable('promtool', oldest, findPrograms(['promtool']))).path;
}

async function fromArchive(): Promise<string> {
  const codename = releaseCodename();
  const folder = await toolchainPart(`promtool-${codename}-${process.arch}`, async (partial) => {
    progress(`fetching promtool into .toolchain (package prometheus of ${codename}, some 30 MB of lists and programs)`);
    const apt = await PrivateApt.open(`${partial}/apt`, readAptSources(codename));
    const version = await apt.candidateVersion('prometheus');
    if (version === undefined || isOlder(version, oldest))
      throw new NotAvailable(`${codename} has ${version ?? 'no prometheus'}, ${oldest} or newer is needed`);
    await apt.unpack(['prometheus'], `${partial}/root`);
    await programVersion(`${partial}/root/usr/bin/promtool`);
    await rm(`${partial}/apt`, { recursive: true });
    await rm(`${partial}/root/usr/bin/prometheus`);
  });
  return `${folder}/root/usr/bin/promtool`;
}

/** Without the service discoveries, which no rule needs. */
async function fromGo(): Promise<string> {
  const go = findPrograms(['go'])[0];
  if (go === undefined) throw new NotAvailable('no go on PATH');
  const folder = await toolchainPart(`promtool-${goVersion}-go-${process.arch}`, async (partial) => {
    progress(`building promtool ${goVersion} with Go into .toolchain (some 5 minutes)`);
    const env = {
      HOME: homedir(),
      ...process.env,
      GOBIN: partial,
      GOFLAGS: '-buildvcs=false -p=2',
      CGO_ENABLED: '0',
    };
    const module = `github.com/prometheus/prometheus/cmd/promtool@${goVersion}`;
    await runCommand('nice', ['-n', '15', go, 'install', '-tags', 'remove_all_sd', module], { env, cwd: partial });
  });
  return `${folder}/promtool`;
}
