import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const toolchain = join(import.meta.dirname, '../../.toolchain/go');
const builderVersion = 'v0.155.0';
const promtoolVersion = 'v0.316.0';

/** What is missing, in words; a check says so and is skipped. */
export class NoGoTools extends Error {}

function run(command: string, args: readonly string[], cwd: string, env: Record<string, string>): void {
  const settings = { GOFLAGS: '-buildvcs=false -p=2', CGO_ENABLED: '0', ...env };
  // A build of minutes leaves the machine to whoever else works on it.
  const ran = spawnSync('nice', ['-n', '15', command, ...args], {
    cwd,
    env: { ...process.env, ...settings },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (ran.status !== 0)
    throw new NoGoTools(`${command} ${args.join(' ')} did not succeed: modules may be out of reach`);
}

function needGo(): void {
  if (spawnSync('go', ['version']).status !== 0) throw new NoGoTools('needs Go');
}

/** The collector that builder.yaml describes; built once for each content of it, in about two minutes on two cores. */
export function buildCollector(): string {
  const folder = join(toolchain, 'collector');
  const program = join(folder, 'build/keytrail-otelcol');
  const manifest = join(import.meta.dirname, 'builder.yaml');
  const built = join(folder, 'built.yaml');
  if (existsSync(program) && existsSync(built) && readFileSync(built, 'utf8') === readFileSync(manifest, 'utf8'))
    return program;
  needGo();
  mkdirSync(folder, { recursive: true });
  run('go', ['install', `go.opentelemetry.io/collector/cmd/builder@${builderVersion}`], folder, { GOBIN: folder });
  run(join(folder, 'builder'), ['--config', manifest], folder, {});
  copyFileSync(manifest, built);
  return program;
}

/** promtool; without the service discoveries, which no rule needs. */
export function installPromtool(): string {
  const folder = join(toolchain, `promtool-${promtoolVersion}`);
  const program = join(folder, 'promtool');
  if (existsSync(program)) return program;
  needGo();
  mkdirSync(folder, { recursive: true });
  const module = `github.com/prometheus/prometheus/cmd/promtool@${promtoolVersion}`;
  run('go', ['install', '-tags', 'remove_all_sd', module], folder, { GOBIN: folder });
  return program;
}
