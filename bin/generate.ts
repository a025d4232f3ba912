import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { readCommandLine } from '../deploy/local/src/command-line.ts';

const help = `Usage: bin/with-node node bin/generate.ts [--check | --fetch-only]

Makes the generated code anew: contracts (buf, protoc-gen-es), Prisma clients, the references of configuration, metrics and attributes.
Extends proto/baseline.binpb, against which contracts may only grow, by what they have grown; refuses where they break it.
  --check        write nothing; exit 1 when what is committed is not what would be generated
  --fetch-only   only fetch the contract files of others
Contracts need Go once, to fetch buf/validate/validate.proto as a Go module; without Go that part is skipped and said so.`;

const { values } = readCommandLine(help, {
  options: {
    check: { type: 'boolean' },
    'fetch-only': { type: 'boolean' },
    help: { type: 'boolean', short: 'h' },
  },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}

const baseline = 'proto/baseline.binpb';
const root = join(import.meta.dirname, '..');
const run = (command: string, args: readonly string[]) =>
  execFileSync(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8' });

/** Third-party contract files come out of packages, into the git-ignored toolchain; none is committed. */
function fetchContractsOfOthers(): boolean {
  const google = join(root, '.toolchain/protos/google/google/rpc');
  const validate = join(root, '.toolchain/protos/validate/buf/validate');
  mkdirSync(google, { recursive: true });
  mkdirSync(validate, { recursive: true });
  for (const file of ['status.proto', 'code.proto', 'error_details.proto']) {
    cpSync(join(root, 'node_modules/google-proto-files/google/rpc', file), join(google, file));
  }
  if (existsSync(join(validate, 'validate.proto'))) return true;
  try {
    const module = JSON.parse(run('go', ['mod', 'download', '-json', 'github.com/bufbuild/protovalidate@v1.2.2']));
    cpSync(join(module.Dir, 'proto/protovalidate/buf/validate/validate.proto'), join(validate, 'validate.proto'));
    return true;
  } catch {
    return false;
  }
}

function filesBelow(folder: string): Map<string, string> {
  const files = new Map<string, string>();
  if (!existsSync(folder)) return files;
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    files.set(relative(folder, path), readFileSync(path, 'utf8'));
  }
  return files;
}

if (values['fetch-only']) process.exit(fetchContractsOfOthers() ? 0 : 1);

interface Part {
  readonly name: string;
  readonly output: readonly string[];
  readonly generate: () => void;
  readonly missing?: string;
}

const services = readdirSync(join(root, 'services'));
const parts: Part[] = [
  {
    name: 'contracts',
    output: ['packages/contracts/src/gen'],
    generate: () => {
      run('npx', ['buf', 'generate']);
    },
    ...(fetchContractsOfOthers() ? {} : { missing: 'Go (to fetch buf/validate/validate.proto as a Go module)' }),
  },
  {
    name: 'Prisma clients',
    output: services.map((service) => `services/${service}/src/store/generated`),
    generate: () => {
      run('node', ['packages/storage/src/bin/generate-clients.ts']);
    },
  },
  {
    name: 'configuration reference',
    output: ['docs/configuration'],
    generate: () => {
      run('node', ['bin/write-configuration-reference.ts']);
    },
  },
  {
    name: 'metric reference',
    output: ['docs/metrics'],
    generate: () => {
      run('node', ['bin/write-metric-reference.ts']);
    },
  },
  {
    name: 'attribute reference',
    output: ['docs/attributes'],
    generate: () => {
      run('node', ['bin/write-attribute-reference.ts']);
    },
  },
];

/** What a contract promises once is in the baseline from the same commit on: later commits cannot take it back unseen. */
function extendBaseline(): void {
  const breaking = spawnSync('npx', ['buf', 'breaking', 'proto', '--against', baseline], {
    cwd: root,
    encoding: 'utf8',
  });
  if (breaking.status !== 0) {
    console.error(`generate: ${baseline}: left as it is, as contracts break it:\n${breaking.stdout}${breaking.stderr}`);
    process.exit(1);
  }
  run('npx', ['buf', 'build', 'proto', '--exclude-source-info', '-o', baseline]);
  console.error(`generate: ${baseline}: has all that the contracts promise`);
}

let stale = 0;
for (const part of parts) {
  if (part.missing) {
    console.error(`generate: ${part.name}: skipped, needs ${part.missing}`);
    continue;
  }
  if (!values.check) {
    part.generate();
    console.error(`generate: ${part.name}: done`);
    continue;
  }
  const kept = mkdtempSync(join(tmpdir(), 'keytrail-generate-'));
  const present = part.output.filter((path) => existsSync(join(root, path)));
  for (const path of present) cpSync(join(root, path), join(kept, path), { recursive: true });
  try {
    part.generate();
    for (const path of part.output) {
      const before = filesBelow(join(kept, path));
      const after = filesBelow(join(root, path));
      for (const file of new Set([...before.keys(), ...after.keys()])) {
        if (before.get(file) === after.get(file)) continue;
        stale += 1;
        console.error(`generate: stale: ${path}/${file} (run: make generate)`);
      }
    }
  } finally {
    for (const path of part.output) rmSync(join(root, path), { recursive: true, force: true });
    for (const path of present) cpSync(join(kept, path), join(root, path), { recursive: true });
    rmSync(kept, { recursive: true, force: true });
  }
  console.error(`generate: ${part.name}: ${stale === 0 ? 'fresh' : 'checked'}`);
}
if (!values.check && !parts.some(({ name, missing }) => name === 'contracts' && missing)) extendBaseline();
process.exit(stale === 0 ? 0 : 1);
