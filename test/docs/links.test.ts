import { existsSync, readFileSync } from 'node:fs';
import { dirname, relative, resolve } from 'node:path';
import { expect, test } from 'vitest';
import { checkout, filesBelow } from './files.ts';

const documents = filesBelow(checkout, '.md');

test('relative links in the documents lead somewhere', () => {
  const broken = documents.flatMap((document) =>
    linksOf(document)
      .filter((target) => !leadsSomewhere(document, target))
      .map((target) => `${relative(checkout, document)}: ${target}`),
  );
  expect(broken).toEqual([]);
});

test('the documents name no path of the machine that they were written on', () => {
  const named = documents.flatMap((document) =>
    (
      readFileSync(document, 'utf8').match(/(?<![\w.~:/])\/(?:home|root|Users|tmp|work|mnt|var\/folders)\/[\w.-]+/g) ??
      []
    ).map((path) => `${relative(checkout, document)}: ${path}`),
  );
  expect(named).toEqual([]);
});

function linksOf(document: string): string[] {
  const prose = readFileSync(document, 'utf8')
    .replaceAll(/^(```+).*?^\1/gms, '')
    .replaceAll(/`[^`\n]*`/g, '');
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = '']) => target)
    .filter((target) => !/^[a-z]+:/.test(target));
}

function leadsSomewhere(document: string, target: string): boolean {
  const [path = '', anchor] = target.split('#');
  const file = path === '' ? document : resolve(dirname(document), path);
  if (!existsSync(file)) return false;
  return anchor === undefined || anchorsOf(file).includes(anchor);
}

function anchorsOf(file: string): string[] {
  const headings = readFileSync(file, 'utf8').match(/(?<=^#+ ).*$/gm) ?? [];
  return headings.map((heading) =>
    heading
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}
