import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { findingCatalogue, findingPage } from '../../services/session/src/domain/findings.ts';
import { checkout, filesBelow } from './files.ts';

const own = findingCatalogue.filter((code) => findingPage(code).startsWith('docs/findings/'));
const read = (page: string) => readFileSync(join(checkout, page), 'utf8');
const index = read('docs/findings/README.md');

test('each finding that is no cause of a miss has a page, and each page has a finding', () => {
  const pages = readdirSync(join(checkout, 'docs/findings')).filter((file) => file !== 'README.md');
  expect(pages.map((file) => `docs/findings/${file}`).sort()).toEqual(own.map((code) => findingPage(code)).sort());
});

test('the index has the findings in the order in which they are ranked', () => {
  const codes = [...index.matchAll(/^\| \[([A-Z_]+)\]\(/gm)].map(([, code]) => code);
  expect(codes).toEqual([...findingCatalogue]);
});

describe.each(findingCatalogue)('%s', (code) => {
  test('has a page with its name, and is found somewhere', () => {
    expect(read(findingPage(code)).startsWith(`# ${code}\n`)).toBe(true);
    const domain = filesBelow(join(checkout, 'services/session/src/domain'), '.ts')
      .filter((file) => !file.endsWith('/findings.ts'))
      .map((file) => readFileSync(file, 'utf8'))
      .join('\n');
    expect(domain).toMatch(new RegExp(`code: '${code}'|^  ${code}: \\[`, 'm'));
  });
});
