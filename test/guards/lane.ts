import { join } from 'node:path';
import { createVitest, type TestCase, type TestModule, type Vitest } from 'vitest/node';
import type { Ran, TestOutcome, TestsToRun } from './run-tests.ts';

/** A test runner that stays: what did not change since the run before is not read and compiled again. Started in the folder of its tests. */
let runner: Vitest | undefined;
let changedBefore: readonly string[] = [];

process.on('message', async (wanted: TestsToRun) => {
  try {
    process.send?.(await run(wanted));
  } catch (error) {
    process.send?.({ tests: [], broken: [error instanceof Error ? String(error.stack) : String(error)] } satisfies Ran);
  }
});
process.on('disconnect', () => process.exit());

async function run({ folder, files, names, changed, timeoutMs }: TestsToRun): Promise<Ran> {
  runner ??= await createVitest({ root: folder, watch: false, reporters: [{}] }, { logLevel: 'silent' });
  // What was changed for the run before is as it was again.
  for (const file of [...changedBefore, ...changed]) runner.invalidateFile(join(folder, file));
  changedBefore = changed;
  const project = runner.projects[0];
  if (!project) throw new Error('the runner has no project');
  if (timeoutMs !== undefined) project.config.testTimeout = timeoutMs;
  runner.setGlobalTestNamePattern(patternOf(names));
  const specifications = files.map((file) => project.createSpecification(join(folder, file)));
  const { testModules } = await runner.runTestSpecifications(specifications);
  return {
    tests: testModules.flatMap((module) => [...module.children.allTests()].flatMap(outcomeOf)),
    broken: testModules.flatMap(brokenBy),
  };
}

/** Where a suite's name ends and a test's begins, the filter sees « > » and the guards a space. */
function patternOf(names: readonly string[]): RegExp {
  const ends = [...new Set(names)].map((name) =>
    name.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&').replaceAll(' ', '(?: > | )'),
  );
  return new RegExp(`(?:^|\\s)(?:${ends.join('|')})$`);
}

function outcomeOf(test: TestCase): TestOutcome[] {
  const { state, errors } = test.result();
  if (state !== 'passed' && state !== 'failed') return [];
  const failure = (errors ?? []).map(({ stack, message }) => stack ?? message).join('\n');
  return [
    {
      file: test.module.moduleId,
      name: test.fullName.replaceAll(' > ', ' '),
      passed: state === 'passed',
      failure,
    },
  ];
}

/** Why a file ran none of its tests to their end. */
function brokenBy(module: TestModule): string[] {
  const failed = [...module.children.allTests('failed')];
  if (module.state() !== 'failed' || failed.length > 0) return [];
  const suites = [...module.children.allSuites()].flatMap((suite) => suite.errors());
  const errors = [...module.errors(), ...suites].map(({ message }) => message);
  return [`${module.moduleId}: ${errors.join('; ')}`];
}
