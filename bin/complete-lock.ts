/**
 * Adds to package-lock.json the optional packages of other platforms that npm left out, because the registry at hand does
 * not carry them. Without them `npm ci` refuses the whole lock file, everywhere. They are skipped on this platform; on
 * theirs they are fetched by exact version (without an integrity hash, which only their registry could tell).
 *
 *   bin/with-node node bin/complete-lock.ts      after every npm install that changed package-lock.json
 */
import { readFileSync, writeFileSync } from 'node:fs';

interface LockedPackage {
  version?: string;
  dev?: boolean;
  optional?: boolean;
  os?: string[];
  cpu?: string[];
  libc?: string[];
  optionalDependencies?: Record<string, string>;
}

const systems = ['android', 'darwin', 'freebsd', 'linux', 'netbsd', 'openbsd', 'openharmony', 'sunos', 'win32', 'aix'];
const processors: Record<string, string> = {
  arm64: 'arm64',
  x64: 'x64',
  ia32: 'ia32',
  ppc64: 'ppc64',
  s390x: 's390x',
  riscv64: 'riscv64',
  loong64: 'loong64',
  mips64el: 'mips64el',
  arm: 'arm',
  armv7: 'arm',
};

const file = new URL('../package-lock.json', import.meta.url);
const lock = JSON.parse(readFileSync(file, 'utf8')) as { packages: Record<string, LockedPackage> };
const added: string[] = [];
for (const parent of Object.values(lock.packages)) {
  for (const [name, version] of Object.entries(parent.optionalDependencies ?? {})) {
    const place = `node_modules/${name}`;
    if (lock.packages[place] !== undefined) continue;
    lock.packages[place] = entryOf(name, version, parent.dev === true);
    added.push(name);
  }
}
const paths = Object.keys(lock.packages).sort((a, b) => a.localeCompare(b, 'en'));
writeFileSync(
  file,
  `${JSON.stringify({ ...lock, packages: Object.fromEntries(paths.map((path) => [path, lock.packages[path]])) }, null, 2)}\n`,
);
console.log(
  `package-lock.json: ${added.length} packages of other platforms added${added.length === 0 ? '' : `: ${added.join(', ')}`}`,
);

function entryOf(name: string, version: string, dev: boolean): LockedPackage {
  const words = name.slice(name.lastIndexOf('/') + 1).split('-');
  const system = systems.find((candidate) => words.includes(candidate));
  const processor = words.map((word) => processors[word]).find((found) => found !== undefined);
  if (!/^\d+\.\d+\.\d+/.test(version))
    throw new Error(`${name}@${version} is not in package-lock.json, and not pinned exactly`);
  // An entry without a platform would be fetched everywhere, and fail.
  if (system === undefined || processor === undefined)
    throw new Error(`${name} is not in package-lock.json, and its name tells no platform`);
  const libc = words.some((word) => word.startsWith('musl')) ? { libc: ['musl'] } : {};
  return { version, cpu: [processor], ...(dev ? { dev } : {}), ...libc, optional: true, os: [system] };
}
