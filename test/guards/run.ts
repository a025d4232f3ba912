import { join } from 'node:path';
import { checkoutFolder, ensurePostgres } from '@keytrail/local';
import { readCommandLine } from '@keytrail/local/command-line';
import { type CheckoutCopy, copyCheckout } from './checkout-copy.ts';
import type { Guard } from './guard.ts';
import { guards } from './guards.ts';
import { type Ran, TestLane, type TestOutcome } from './run-tests.ts';
import { shownGreen } from './shown-green.ts';
import { inTurns, turnOf } from './turns.ts';

const help = `Usage: make guards
       bin/with-node node test/guards/run.ts [--only NAME] [--tested FILE] [--within MINUTES] [--list] [--json]

Switches off each guard of an invariant in turn, in a copy of the checkout, and expects its test to go red because of it: by a failed
assertion, not because something no longer loads or starts. Before that, all those tests must be green in the untouched copy.

  --only NAME  the guards whose name contains NAME, or those of an invariant (I1 to I10)
  --tested FILE
               results of a run of the tests in this very checkout (.local/test/results.json): what they show green is not run
               again first; results older than any file of the checkout count for nothing
  --within MINUTES
               begin with no further guard after that time. The order is the revision's own, so that over the revisions all have their turn
  --list       print the guards and what they do
  --json       print the outcomes as JSON

Exit codes: 0 every guard is proven, 1 a guard is not, 2 bad usage or the tests are not green to begin with.`;

/** Guards are switched off in as many copies at once. */
const lanesAtOnce = 2;
const timeoutMs = 30_000;
/** For tests that wait for what never comes: many times of what they take when it does. */
const hangTimeoutMs = 12_000;

process.exitCode = await main();

async function main(): Promise<number> {
  const { values } = readCommandLine(help, {
    options: {
      only: { type: 'string' },
      tested: { type: 'string' },
      within: { type: 'string' },
      list: { type: 'boolean' },
      json: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    console.log(help);
    return 0;
  }
  const { only } = values;
  const minutes = values.within === undefined ? Number.POSITIVE_INFINITY : Number(values.within);
  if (!(minutes > 0)) {
    console.error(`--within takes minutes, not ${values.within}\n${help}`);
    return 2;
  }
  const named = guards.filter(({ name, invariant }) => only === undefined || invariant === only || name.includes(only));
  const chosen = values.within === undefined ? named : inTurns(named, turnOf(checkoutFolder));
  if (chosen.length === 0) {
    console.error(`no guard is named ${only}\n${help}`);
    return 2;
  }
  if (values.list) {
    for (const { invariant, name, what } of chosen) console.log(`${invariant.padEnd(4)} ${name}: ${what}`);
    return 0;
  }

  const copies = Array.from({ length: Math.min(lanesAtOnce, chosen.length) }, (_, lane) =>
    copyCheckout(`tree-${lane}`),
  );
  const postgres = await ensurePostgres();
  const lanes = copies.map((copy) => ({ copy, tests: new TestLane(copy.folder, postgres.url) }));
  try {
    const green = values.tested === undefined ? new Set() : shownGreen(chosen, values.tested);
    const unknown = chosen.filter((guard) => !green.has(guard));
    console.error(`guards: the tests of ${chosen.length} guards must be green before anything is switched off`);
    if (values.tested !== undefined)
      console.error(`guards: ${values.tested} shows that for ${green.size} of them; ${unknown.length} are run`);
    const notGreen = await findNotGreen(lanes, unknown);
    if (notGreen.length > 0) {
      console.error(`guards: not green to begin with:\n  ${notGreen.join('\n  ')}`);
      return 2;
    }
    const outcomes = await proveAll(lanes, chosen, performance.now() + minutes * 60_000);
    const proven = outcomes.filter((outcome) => outcome.proven).length;
    if (values.json) console.log(JSON.stringify(outcomes, null, 2));
    const left = chosen.length - outcomes.length;
    if (left > 0) console.log(`guards: ${left} are left for other revisions, or for make guards without --within`);
    for (const { name, proven, why } of outcomes) if (!proven) console.log(`failed: guard ${name}: ${why}`);
    console.log(`guards: ${proven} passed, ${outcomes.length - proven} failed`);
    return proven === outcomes.length ? 0 : 1;
  } finally {
    for (const { tests } of lanes) tests.stop();
    await postgres.stop();
    for (const copy of copies) copy.remove();
  }
}

interface Lane {
  readonly copy: CheckoutCopy;
  readonly tests: TestLane;
}

async function findNotGreen(lanes: readonly Lane[], chosen: readonly Guard[]): Promise<string[]> {
  const waiting = [...Map.groupBy(chosen, ({ test }) => test.file)];
  const notGreen: string[] = [];
  await Promise.all(
    lanes.map(async ({ copy, tests }) => {
      for (let next = waiting.shift(); next; next = waiting.shift()) {
        const [file, guarded] = next;
        const ran = await tests.run({ files: [file], names: guarded.map(({ test }) => test.name), changed: [] });
        const red = ran.tests
          .filter(({ passed }) => !passed)
          .map(({ name, failure }) => `${name}: ${firstLine(failure)}`);
        const absent = guarded
          .filter((guard) => testOf(guard, copy, ran) === undefined)
          .map(({ name, test }) => `${name}: ${test.file} ran no test «${test.name}»`);
        notGreen.push(...ran.broken, ...red, ...absent);
      }
    }),
  );
  return [...new Set(notGreen)];
}

interface Outcome {
  readonly name: string;
  readonly invariant: string;
  readonly proven: boolean;
  readonly why: string;
  readonly ms: number;
}

async function proveAll(lanes: readonly Lane[], chosen: readonly Guard[], until: number): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  const waiting = [...chosen];
  await Promise.all(
    lanes.map(async (lane) => {
      for (let guard = waiting.shift(); guard && performance.now() < until; guard = waiting.shift()) {
        const outcome = await prove(guard, lane);
        outcomes.push(outcome);
        const { invariant, name, proven, why, ms } = outcome;
        console.error(`guards: ${proven ? 'ok  ' : 'FAIL'} ${invariant.padEnd(4)} ${name} (${ms} ms): ${why}`);
      }
    }),
  );
  return outcomes;
}

async function prove(guard: Guard, { copy, tests }: Lane): Promise<Outcome> {
  const from = performance.now();
  const { name, invariant, switchOff, test } = guard;
  const verdict = await copy
    .without(switchOff, async () => {
      const limit = test.hangs ? hangTimeoutMs : timeoutMs;
      const changed = switchOff.map(({ file }) => file);
      const ran = await tests.run({ files: [test.file], names: [test.name], changed, timeoutMs: limit });
      return judge(guard, testOf(guard, copy, ran), ran);
    })
    .catch((error: unknown) => ({ proven: false, why: String(error) }));
  return { name, invariant, ...verdict, ms: Math.round(performance.now() - from) };
}

function judge(guard: Guard, test: TestOutcome | undefined, { broken }: Ran): { proven: boolean; why: string } {
  if (!test) return { proven: false, why: `its test does not run without it: ${broken[0] ?? 'no result'}` };
  if (test.passed) return { proven: false, why: 'its test stays green without it' };
  const failure = firstLine(test.failure);
  // Anything else may just as well be code that no longer works at all.
  const noticed = guard.test.hangs
    ? /timed out/i.test(failure)
    : /^AssertionError|^Error: (expected error: |expected .* to match object |.*was (not refused|answered)|.*instead of rejecting|Property failed)/.test(
        failure,
      );
  return { proven: noticed, why: `${noticed ? 'red without it' : 'red, but not by an assertion'}: ${failure}` };
}

function testOf({ test }: Guard, copy: CheckoutCopy, { tests }: Ran): TestOutcome | undefined {
  return tests.find(({ file, name }) => file === join(copy.folder, test.file) && ` ${name}`.endsWith(` ${test.name}`));
}

function firstLine(text: string): string {
  return (text.split('\n')[0] ?? '').slice(0, 160);
}
