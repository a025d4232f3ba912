import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { execFileSync } from 'node:child_process';
import { checkoutFolder, ensurePostgres } from '@keytrail/local';
import { type Guard, guards } from './guards.ts';

const help = `Usage: make guards
       bin/with-node node test/guards/run.ts [--only NAME] [--list] [--json]

Switches off each guard of an invariant in turn, in a copy of the checkout, and expects its test to go red. Before that, all those tests
must be green in the untouched copy.
Exit codes: 0 every guard is proven, 1 a guard is not, 2 bad usage or the tests are not green to begin with.`;

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    list: { type: 'boolean' },
    json: { type: 'boolean' },
    help: { type: 'boolean', short: 'h' },
  },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}
const chosen = guards.filter((guard) => values.only === undefined || guard.name.includes(values.only));
if (chosen.length === 0) {
  console.error(`no guard is named ${values.only}\n${help}`);
  process.exit(2);
}
if (values.list) {
  for (const guard of chosen) console.log(`${guard.invariant.padEnd(4)} ${guard.name}: ${guard.what}`);
  process.exit(0);
}

const copy = join(checkoutFolder, '.local', 'guards', 'tree');
copyCheckout();
const postgres = await ensurePostgres();
const outcomes: { name: string; invariant: string; proven: boolean; why: string; ms: number }[] = [];
try {
  console.error(`guards: ${chosen.length} tests must be green before anything is switched off`);
  const files = [...new Set(chosen.map((guard) => guard.test.file))];
  const green = await runTests(files, chosen.map((guard) => guard.test.name));
  if (green.failed.length > 0 || green.broken.length > 0 || green.passed.length === 0) {
    console.error(`guards: not green to begin with: ${[...green.failed, ...green.broken].join('; ') || 'no test ran'}`);
    process.exitCode = 2;
  } else {
    const unknown = chosen.filter((guard) => !green.passed.some((name) => name.includes(guard.test.name)));
    for (const guard of unknown) record(guard, false, `there is no test «${guard.test.name}»`, 0);
    for (const guard of chosen.filter((each) => !unknown.includes(each))) await prove(guard);
  }
} finally {
  await postgres.stop();
  rmSync(copy, { recursive: true, force: true });
}
if (process.exitCode === 2) process.exit(2);

const failed = outcomes.filter((outcome) => !outcome.proven);
if (values.json) console.log(JSON.stringify(outcomes, null, 2));
console.log(`guards: ${outcomes.length - failed.length} passed, ${failed.length} failed`);
process.exit(failed.length === 0 ? 0 : 1);

async function prove(guard: Guard): Promise<void> {
  const from = performance.now();
  const originals = new Map<string, string>();
  try {
    for (const { file, find, replace } of guard.switchOff) {
      const path = join(copy, file);
      const text = readFileSync(path, 'utf8');
      if (!originals.has(path)) originals.set(path, text);
      if (text.split(find).length !== 2) {
        record(guard, false, `the guard is not found exactly once in ${file}: ${find.slice(0, 60)}`, 0);
        return;
      }
      writeFileSync(path, text.replace(find, () => replace));
    }
    const { failed: red, broken } = await runTests([guard.test.file], [guard.test.name]);
    const ms = Math.round(performance.now() - from);
    // Red because the test noticed, not because the file no longer loads.
    if (red.length > 0) record(guard, true, `red without it: ${red[0]}`, ms);
    else record(guard, false, broken.length > 0 ? `the suite does not run without it: ${broken[0]}` : 'its test stays green without it', ms);
  } finally {
    for (const [path, text] of originals) writeFileSync(path, text);
  }
}

function record(guard: Guard, proven: boolean, why: string, ms: number): void {
  outcomes.push({ name: guard.name, invariant: guard.invariant, proven, why, ms });
  console.error(`guards: ${proven ? 'ok  ' : 'FAIL'} ${guard.invariant.padEnd(4)} ${guard.name} (${ms} ms): ${why}`);
}

interface Ran {
  readonly passed: string[];
  readonly failed: string[];
  /** Files whose tests could not run at all, and tests that a failed hook kept from running. */
  readonly broken: string[];
}

async function runTests(files: readonly string[], names: readonly string[]): Promise<Ran> {
  const output = join(checkoutFolder, '.local', 'guards', 'results.json');
  rmSync(output, { force: true });
  const pattern = [...new Set(names)].map((name) => name.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|');
  const vitest = spawn(
    process.execPath,
    [
      join(checkoutFolder, 'node_modules/vitest/vitest.mjs'),
      'run',
      '--reporter=json',
      `--outputFile.json=${output}`,
      '-t',
      pattern,
      ...files,
    ],
    { cwd: copy, stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, KEYTRAIL_POSTGRES_URL: postgres.url, KEYTRAIL_SKIP_INSTALL: '1' } },
  );
  let errors = '';
  vitest.stderr.on('data', (chunk: Buffer) => {
    errors = (errors + chunk.toString()).slice(-4_000);
  });
  await new Promise((resolve) => vitest.once('exit', resolve));
  if (!existsSync(output)) return { passed: [], failed: [], broken: [errors || 'no results'] };
  const { testResults } = JSON.parse(readFileSync(output, 'utf8')) as {
    testResults: {
      name: string;
      status: string;
      message: string;
      assertionResults: { fullName: string; status: string; failureMessages: string[] }[];
    }[];
  };
  const tests = testResults.flatMap((file) => file.assertionResults);
  return {
    passed: tests.filter((test) => test.status === 'passed').map((test) => test.fullName),
    failed: tests.filter((test) => test.status === 'failed').map((test) => test.fullName),
    broken: testResults
      .filter((file) => file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed'))
      .map((file) => `${file.name}: ${file.message}`),
  };
}

/** The copy has the checkout's files, its installed packages, and its own workspace packages. */
function copyCheckout(): void {
  rmSync(copy, { recursive: true, force: true });
  const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '-z'], {
    cwd: checkoutFolder,
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
  });
  for (const file of files.split('\0').filter((path) => path !== '' && existsSync(join(checkoutFolder, path)))) {
    mkdirSync(dirname(join(copy, file)), { recursive: true });
    cpSync(join(checkoutFolder, file), join(copy, file));
  }
  const installed = join(checkoutFolder, 'node_modules');
  mkdirSync(join(copy, 'node_modules', '@keytrail'), { recursive: true });
  for (const entry of readdirSync(installed)) {
    if (entry !== '@keytrail') symlinkSync(join(installed, entry), join(copy, 'node_modules', entry));
  }
  for (const group of ['packages', 'services', 'deploy']) {
    for (const folder of readdirSync(join(copy, group))) {
      const manifest = join(copy, group, folder, 'package.json');
      if (!existsSync(manifest)) continue;
      const { name } = JSON.parse(readFileSync(manifest, 'utf8')) as { name: string };
      symlinkSync(join(copy, group, folder), join(copy, 'node_modules', name));
      const nested = join(checkoutFolder, group, folder, 'node_modules');
      if (existsSync(nested)) symlinkSync(nested, join(copy, group, folder, 'node_modules'));
    }
  }
  const toolchain = join(checkoutFolder, '.toolchain');
  if (existsSync(toolchain)) symlinkSync(toolchain, join(copy, '.toolchain'));
}
