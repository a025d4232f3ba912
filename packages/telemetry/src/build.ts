import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { hostname } from 'node:os';
import { join, relative, resolve } from 'node:path';
import { contractDigest } from '@keytrail/contracts/digest';
import { detectSupervisor, restartAdvice, type Supervisor, surroundings } from './supervisor.ts';

/** Which build a process runs, as it was when it started. */
export interface BuildIdentity {
  readonly service: string;
  readonly version: string;
  /** Git revision, 40 hex digits, or 'unknown'. */
  readonly revision: string;
  /** SHA-256 over the sorted paths and contents of the service's sources and all packages, 64 hex digits. */
  readonly sourcesDigest: string;
  /**
   * The short form that rows and answers carry: version, '+', 12 digits of the revision, or when that is unknown of a digest over the
   * sources of all services, so that it is one for the release.
   */
  readonly writerBuild: string;
  /** The newest migration that the code of the service had when it started; empty for a service without any. */
  readonly newestMigration: string;
  /** SHA-256 over the contracts, 64 hex digits. */
  readonly contractDigest: string;
  readonly nodeVersion: string;
  readonly pid: number;
  readonly host: string;
  /** ISO 8601. */
  readonly startedAt: string;
  /** That it was started from; empty when unknown. */
  readonly image: string;
  readonly supervisor: Supervisor;
  /** How to restart it, one line. */
  readonly restartAdvice: string;
}

export interface BuildOptions {
  readonly revision?: string | undefined;
  readonly image?: string | undefined;
  /** Found out when not given. */
  readonly supervisor?: Supervisor | undefined;
}

const repository = resolve(import.meta.dirname, '../../..');
const startedAt = new Date(Date.now() - process.uptime() * 1_000).toISOString();
const identities = new Map<string, BuildIdentity>();

/** The identity of this process for a service. Computed once; later calls give the same. */
export function buildIdentity(service: string, options: BuildOptions = {}): BuildIdentity {
  const known = identities.get(service);
  if (known !== undefined) return known;
  const { version } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')) as { version: string };
  const revision = options.revision ?? readRevision(repository);
  const [pid, host] = [process.pid, hostname()];
  const supervisor = options.supervisor ?? detectSupervisor(surroundings());
  const identity: BuildIdentity = {
    service,
    version,
    revision,
    sourcesDigest: digestSources(service),
    writerBuild: `${version}+${(revision === 'unknown' ? digestFolders(repository, ['services', 'packages']) : revision).slice(0, 12)}`,
    newestMigration: newestMigration(service),
    contractDigest: contractDigest(),
    nodeVersion: process.version,
    pid,
    host,
    startedAt,
    image: options.image ?? '',
    supervisor,
    restartAdvice: restartAdvice(supervisor, { service, host, pid }),
  };
  identities.set(service, identity);
  return identity;
}

function newestMigration(service: string): string {
  const folder = join(repository, 'services', service, 'prisma', 'migrations');
  if (!existsSync(folder)) return '';
  const names = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  return (
    names
      .map(({ name }) => name)
      .sort()
      .at(-1) ?? ''
  );
}

/** The digest of the sources as they are on disk now; differs from the identity's when they changed after the start. */
export function digestSources(service: string, root = repository): string {
  return digestFolders(root, [join('services', service), 'packages']);
}

const rememberedMs = 5_000;
const onDisk = new Map<string, { readonly digest: string; readonly until: number }>();

/** The same, remembered for some seconds: for whoever is asked often. */
export function sourcesOnDisk(service: string): string {
  const known = onDisk.get(service);
  if (known !== undefined && known.until > performance.now()) return known.digest;
  const digest = digestSources(service);
  onDisk.set(service, { digest, until: performance.now() + rememberedMs });
  return digest;
}

function digestFolders(root: string, folders: readonly string[]): string {
  const files = folders.flatMap((folder) => sourceFiles(join(root, folder)));
  const digest = createHash('sha256');
  for (const file of files.sort()) {
    const content = readFileSync(file);
    digest.update(`${relative(root, file)}\0${content.length}\0`).update(content);
  }
  return digest.digest('hex');
}

function sourceFiles(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    if (entry.name.startsWith('.') || entry.name === 'node_modules' || entry.name === 'test') return [];
    const path = join(folder, entry.name);
    return entry.isDirectory() ? sourceFiles(path) : entry.isFile() ? [path] : [];
  });
}

/** The revision that a checkout is at, read from its .git without running git; 'unknown' when there is none. */
export function readRevision(root: string): string {
  try {
    const gitFolder = findGitFolder(root);
    const head = readFileSync(join(gitFolder, 'HEAD'), 'utf8').trim();
    if (!head.startsWith('ref: ')) return head;
    const ref = head.slice('ref: '.length);
    const commonFile = join(gitFolder, 'commondir');
    const common = existsSync(commonFile) ? resolve(gitFolder, readFileSync(commonFile, 'utf8').trim()) : gitFolder;
    const loose = join(common, ref);
    if (existsSync(loose)) return readFileSync(loose, 'utf8').trim();
    const packed = readFileSync(join(common, 'packed-refs'), 'utf8').split('\n');
    return packed.find((line) => line.endsWith(` ${ref}`))?.split(' ')[0] ?? 'unknown';
  } catch {
    return 'unknown';
  }
}

function findGitFolder(root: string): string {
  const git = join(root, '.git');
  if (statSync(git).isDirectory()) return git;
  return resolve(
    root,
    readFileSync(git, 'utf8')
      .trim()
      .replace(/^gitdir: /, ''),
  );
}
