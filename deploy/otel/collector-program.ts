import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { NotAvailable } from '../local/src/servers/server.ts';

const folder = join(import.meta.dirname, '../../.toolchain/go/collector');
const builderVersion = 'v0.155.0';

/**
 * The path of the collector that builder.yaml describes; built once for each content of it, in about two minutes on two cores.
 * Throws {@link NotAvailable} without Go or its modules.
 */
export function buildCollector(): string {
  const program = join(folder, 'build/keytrail-otelcol');
  const manifest = join(import.meta.dirname, 'builder.yaml');
  const built = join(folder, 'built.yaml');
  if (existsSync(program) && existsSync(built) && readFileSync(built, 'utf8') === readFileSync(manifest, 'utf8'))
    return program;
  if (spawnSync('go', ['version']).status !== 0) throw new NotAvailable('needs Go');
  mkdirSync(folder, { recursive: true });
  run('go', ['install', `go.opentelemetry.io/collector/cmd/builder@${builderVersion}`], { GOBIN: folder });
  run(join(folder, 'builder'), ['--config', manifest]);
  copyFileSync(manifest, built);
  return program;
}

function run(command: string, args: readonly string[], env: Record<string, string> = {}): void {
  const settings = { GOFLAGS: '-buildvcs=false -p=2', CGO_ENABLED: '0', ...env };
  // A build of minutes leaves the machine to whoever else works on it.
  const ran = spawnSync('nice', ['-n', '15', command, ...args], {
    cwd: folder,
    env: { ...process.env, ...settings },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (ran.status !== 0)
    throw new NotAvailable(`${command} ${args.join(' ')} did not succeed: modules may be out of reach`);
}
