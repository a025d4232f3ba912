import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { readCommandLine } from '../deploy/local/src/command-line.ts';

const help = `Usage: bin/with-node node bin/check.ts [--only NAME]

Everything that must hold on each submission besides the tests. Exit 0 when all hold, 1 when one does not, 2 on bad usage.
Checks: types, browser-types, lint, dependencies, contracts-lint, contracts-breaking, contracts-published, wording, generated`;

const { values } = readCommandLine(help, {
  options: { only: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}

const root = join(import.meta.dirname, '..');

interface Check {
  readonly name: string;
  readonly command: readonly string[];
  readonly skip?: string | undefined;
  /** What to do when it fails, where the output does not tell. */
  readonly hint?: string;
}

const contractsOfOthers = existsSync(join(root, '.toolchain/protos/validate/buf/validate/validate.proto'));
const hasGo = spawnSync('go', ['version']).status === 0;
if (!contractsOfOthers && hasGo)
  execFileSync('node', ['bin/generate.ts', '--fetch-only'], { cwd: root, stdio: 'inherit' });
const noContracts = contractsOfOthers || hasGo ? undefined : 'needs Go to fetch buf/validate/validate.proto';

const checks: Check[] = [
  { name: 'types', command: ['npx', 'tsc', '-p', 'tsconfig.json'] },
  { name: 'browser-types', command: ['npx', 'tsc', '-p', 'tsconfig.browser.json'] },
  { name: 'lint', command: ['npx', 'biome', 'check', '--error-on-warnings', '.'] },
  {
    name: 'dependencies',
    command: ['npx', 'depcruise', '--config', 'dependency-direction.mjs', 'services', 'packages', 'deploy'],
  },
  { name: 'contracts-lint', command: ['npx', 'buf', 'lint'], skip: noContracts },
  {
    name: 'contracts-breaking',
    command: ['npx', 'buf', 'breaking', 'proto', '--against', 'proto/baseline.binpb'],
    skip: noContracts,
  },
  {
    // The other way round: nothing is promised that the baseline does not have, or taking it back later would go unseen.
    name: 'contracts-published',
    command: ['npx', 'buf', 'breaking', 'proto/baseline.binpb', '--against', 'proto'],
    skip: noContracts,
    hint: 'the baseline lacks what the contracts have: run make generate',
  },
  { name: 'wording', command: ['node', 'bin/check-wording.ts'] },
  { name: 'generated', command: ['node', 'bin/generate.ts', '--check'] },
];

if (values.only && !checks.some((check) => check.name === values.only)) {
  console.error(`check: there is no check named ${values.only}\n${help}`);
  process.exit(2);
}

let failed = 0;
let passed = 0;
for (const check of checks) {
  if (values.only && check.name !== values.only) continue;
  if (check.skip) {
    console.log(`check: skip ${check.name}: ${check.skip}`);
    continue;
  }
  const [command = '', ...args] = check.command;
  const result = spawnSync(command, args, { cwd: root, encoding: 'utf8' });
  if (result.status === 0) {
    passed += 1;
    console.log(`check: ok   ${check.name}`);
  } else {
    failed += 1;
    console.log(`check: FAIL ${check.name}${check.hint ? ` (${check.hint})` : ''}\n${result.stdout}${result.stderr}`);
  }
}
console.log(`checks: ${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
