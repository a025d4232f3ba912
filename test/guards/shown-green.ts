import { existsSync, readFileSync, statSync } from 'node:fs';
import { join, relative } from 'node:path';
import { checkoutFolder } from '@keytrail/local';
import { filesOfCheckout } from './checkout-copy.ts';
import type { Guard } from './guard.ts';

interface Results {
  readonly startTime: number;
  readonly testResults: readonly {
    readonly name: string;
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[];
  }[];
}

/**
 * The guards of which a run of tests has shown that their tests are green in this checkout, by its JSON results. None when a file of the
 * checkout is newer than the begin of that run: it was of other sources.
 */
export function shownGreen(guards: readonly Guard[], resultsFile: string): ReadonlySet<Guard> {
  if (!existsSync(resultsFile)) return new Set();
  const { startTime, testResults } = JSON.parse(readFileSync(resultsFile, 'utf8')) as Results;
  if (filesOfCheckout().some((file) => statSync(join(checkoutFolder, file)).mtimeMs >= startTime)) return new Set();
  const passed = new Map(
    testResults.map(({ name, assertionResults }) => [
      relative(checkoutFolder, name),
      assertionResults.filter(({ status }) => status === 'passed').map(({ fullName }) => ` ${fullName}`),
    ]),
  );
  return new Set(
    guards.filter(({ test }) => passed.get(test.file)?.some((fullName) => fullName.endsWith(` ${test.name}`))),
  );
}
