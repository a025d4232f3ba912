import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import { checkoutFolder, ensureNats, ensurePostgres, ensureRedis } from '@keytrail/local';
import { readCommandLine } from '@keytrail/local/command-line';

const help = `Usage: make test            all tests, against real servers
       bin/with-node node test/run.ts [PATH...] [-t NAME]

Starts one PostgreSQL for all suites (each makes databases of its own); suites start the NATS, Redis and services that they need.
Results: .local/test/results.json, .local/test/junit.xml. What failed is told in a line each before
the last, which is «N passed, N failed».
Exit codes: 0 all passed, 1 a test failed or none ran, 2 the servers could not be started.`;

const { values, positionals } = readCommandLine(help, {
  allowPositionals: true,
  options: { testNamePattern: { type: 'string', short: 't' }, help: { type: 'boolean', short: 'h' } },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}

interface TestResult {
  readonly status: string;
  readonly fullName: string;
  readonly failureMessages: string[];
}
const firstLine = (text = '') => stripVTControlCharacters(text).split('\n')[0];

const folder = join(checkoutFolder, '.local', 'test');
const results = join(folder, 'results.json');
mkdirSync(folder, { recursive: true });
rmSync(results, { force: true });

const postgres = await ensurePostgres().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exit(2);
});
// Fetched once before the suites, so that no test waits for a download.
for (const server of await Promise.all([ensureRedis({ own: true }), ensureNats({ own: true })])) await server.stop();

const vitest = spawn(
  process.execPath,
  [
    join(checkoutFolder, 'node_modules/vitest/vitest.mjs'),
    'run',
    '--reporter=default',
    '--reporter=json',
    '--reporter=junit',
    `--outputFile.json=${results}`,
    `--outputFile.junit=${join(folder, 'junit.xml')}`,
    ...(values.testNamePattern ? ['-t', values.testNamePattern] : []),
    ...positionals,
  ],
  {
    cwd: checkoutFolder,
    stdio: 'inherit',
    env: { ...process.env, KEYTRAIL_POSTGRES_URL: postgres.url },
  },
);
const code = await new Promise<number>((resolve) => vitest.once('exit', (status) => resolve(status ?? 1)));
await postgres.stop();

try {
  const summary = JSON.parse(readFileSync(results, 'utf8')) as {
    numPassedTests: number;
    numFailedTests: number;
    numPendingTests: number;
    testResults: { name: string; status: string; message: string; assertionResults: TestResult[] }[];
  };
  // A file that could not be loaded, or failed around its tests, has no failed test to count, and must not look like success.
  const broken = summary.testResults.filter(
    ({ status, assertionResults }) => status === 'failed' && !assertionResults.some((test) => test.status === 'failed'),
  );
  for (const { name, assertionResults, message } of broken) {
    const what = assertionResults.length === 0 ? 'did not run' : 'failed around its tests';
    console.log(`failed: ${relative(checkoutFolder, name)} ${what}: ${firstLine(message)}`);
  }
  for (const file of summary.testResults)
    for (const { status, fullName, failureMessages } of file.assertionResults)
      if (status === 'failed')
        console.log(`failed: ${relative(checkoutFolder, file.name)}: ${fullName}: ${firstLine(failureMessages[0])}`);
  const failed = summary.numFailedTests + broken.length;
  const skipped = summary.numPendingTests > 0 ? `, ${summary.numPendingTests} skipped` : '';
  console.log(`${summary.numPassedTests} passed, ${failed} failed${skipped}`);
  process.exit(code === 0 && failed === 0 && summary.numPassedTests > 0 ? 0 : 1);
} catch {
  console.error('the test runner left no results');
  console.log('0 passed, 1 failed');
  process.exit(1);
}
