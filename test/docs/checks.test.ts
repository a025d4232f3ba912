import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkCatalogue, checkPage, deadLettersCheck } from '@keytrail/diagnosis';
import { checkoutFolder } from '@keytrail/local';
import { expect, test } from 'vitest';
import { doctorExitCodes } from '../../packages/cli/src/doctor/finding.ts';

const folder = join(checkoutFolder, 'docs', 'checks');
const read = (name: string) => readFileSync(join(folder, name), 'utf8');
const pages = readdirSync(folder).filter((name) => name.endsWith('.md') && name !== 'README.md');

test('every check has a page, and every page a check', () => {
  const wanted = checkCatalogue.map(({ code }) => checkPage(code).replace('docs/checks/', ''));
  expect([...pages].sort()).toEqual([...wanted].sort());
  for (const { code } of checkCatalogue) {
    const page = read(checkPage(code).replace('docs/checks/', ''));
    expect(page).toMatch(new RegExp(`^# ${code}\n`));
    expect(page).toMatch(/^\| ok \|/m);
    expect(page).toMatch(/^\*\*Costs\*\* ./m);
  }
});

test('the list of checks is the catalogue, in its order, with its titles', () => {
  const rows = [...read('README.md').matchAll(/^\| \[`([A-Z_]+)`\]\(([a-z-]+\.md)\) \| (.+?) \|/gm)];
  expect(rows.map(([, code, page, title]) => ({ code, page, title }))).toEqual(
    checkCatalogue.map(({ code, title }) => ({ code, title, page: checkPage(code).replace('docs/checks/', '') })),
  );
});

test('the eight steps of the diagnosis are all there', () => {
  const steps = checkCatalogue.flatMap((entry) => ('step' in entry ? [entry.step] : []));
  expect([...new Set(steps)].sort()).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
});

test('faults name checks that there are', () => {
  const faults = read('README.md').split('## Faults')[1] ?? '';
  const named = [...faults.matchAll(/`([A-Z][A-Z_]+)`/g)].map(([, code]) => code);
  const codes: string[] = checkCatalogue.map(({ code }) => code);
  expect(named.length).toBeGreaterThan(20);
  expect(named.filter((code) => !codes.includes(code ?? ''))).toEqual([]);
});

test('what names a fault is looked for by a test that injects faults', () => {
  const tests = ['doctor', 'doctor-rows', 'fleets'].map((name) =>
    readFileSync(join(checkoutFolder, 'test', 'faults', `${name}.test.ts`), 'utf8'),
  );
  const faults = read('README.md').split('## Faults')[1] ?? '';
  const named = new Set([...faults.matchAll(/`([A-Z][A-Z_]+)`/g)].map(([, code]) => code ?? ''));
  const asserted = (code: string) =>
    tests.some((text) => new RegExp(`(names|comesToName)\\(\\s*'${code}'|of\\('${code}'\\)|\\b${code}: '`).test(text));
  expect([...named].filter((code) => !asserted(code))).toEqual([]);
  const unnamed = checkCatalogue.map(({ code }) => code).filter((code) => !named.has(code));
  // Of the whole way of a key, which fails with what is named here.
  expect(unnamed).toEqual(['REPRODUCTION']);
});

test('exit codes are documented as they are', () => {
  const documented = [...read('README.md').matchAll(/^\| (\d) \| /gm)].map(([, code]) => Number(code));
  expect(documented).toEqual([...new Set([...Object.values(doctorExitCodes), 2, 3])].sort());
});

test('pages and hints tell to look at dead letters of a service, as the command wants it', () => {
  const page = read('dead-letters.md');
  const told = [page, deadLettersCheck.judge([{ consumer: 'c', letters: 1, newest: new Date() }]).hint];
  for (const text of told)
    expect(text?.match(/keytrail dead-letters (list|replay <id>)(?= --of <service>)/g)).toHaveLength(2);
});
