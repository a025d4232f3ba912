import { spawn } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { checkoutFolder } from '@keytrail/local';

export interface TestOutcome {
  /** Absolute path. */
  readonly file: string;
  readonly name: string;
  readonly passed: boolean;
  readonly failure: string;
}

export interface Ran {
  readonly tests: readonly TestOutcome[];
  /** Why files ran none of their tests: they do not load, or their setup failed. */
  readonly broken: readonly string[];
}

export interface TestsToRun {
  readonly folder: string;
  readonly files: readonly string[];
  /** Ends of full names. */
  readonly names: readonly string[];
  readonly postgresUrl: string;
  /** Of one test; the tests' own limits when left out. */
  readonly timeoutMs?: number;
}

/** Longer than any run takes; one that hangs in its setup ends here. */
const longestRunMs = 240_000;

/** Runs the named tests, and says of each whether it passed. */
export async function runTests({ folder, files, names, postgresUrl, timeoutMs }: TestsToRun): Promise<Ran> {
  const output = join(folder, '.local', 'guard-tests.json');
  rmSync(output, { force: true });
  // Where a suite's name ends and a test's begins, the filter sees « > » and the report a space.
  const ends = [...new Set(names)].map((name) =>
    name.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&').replaceAll(' ', '(?: > | )'),
  );
  const args = ['run', '--reporter=json', `--outputFile.json=${output}`, '-t', `(?:^|\\s)(?:${ends.join('|')})$`];
  if (timeoutMs !== undefined) args.push(`--testTimeout=${timeoutMs}`);
  const vitest = spawn(process.execPath, [join(checkoutFolder, 'node_modules/vitest/vitest.mjs'), ...args, ...files], {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: longestRunMs,
    env: { ...process.env, KEYTRAIL_POSTGRES_URL: postgresUrl },
  });
  let errors = '';
  vitest.stderr.on('data', (chunk: Buffer) => {
    errors = (errors + chunk.toString()).slice(-4_000);
  });
  await new Promise((resolve) => vitest.once('close', resolve));
  if (!existsSync(output)) return { tests: [], broken: [errors || 'vitest gave no results'] };
  const { testResults } = JSON.parse(readFileSync(output, 'utf8')) as { testResults: FileResult[] };
  return {
    tests: testResults.flatMap(({ name: file, assertionResults }) =>
      assertionResults
        .filter(({ status }) => status === 'passed' || status === 'failed')
        .map(({ fullName, status, failureMessages }) => ({
          file,
          name: fullName,
          passed: status === 'passed',
          failure: failureMessages.join('\n'),
        })),
    ),
    broken: testResults
      .filter(({ status, assertionResults }) => status === 'failed' && !assertionResults.some(failed))
      .map(({ name, message }) => `${name}: ${message}`),
  };
}

interface TestResult {
  readonly fullName: string;
  readonly status: string;
  readonly failureMessages: readonly string[];
}

interface FileResult {
  readonly name: string;
  readonly status: string;
  readonly message: string;
  readonly assertionResults: readonly TestResult[];
}

function failed({ status }: TestResult): boolean {
  return status === 'failed';
}
