import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as conventions from '@opentelemetry/semantic-conventions/incubating';
import { expect, test } from 'vitest';
import { attr, attributeReference, eventAttr, eventReference, resourceAttr, resourceReference } from '../src/index.ts';

const registries = [
  ['span', attributeReference],
  ['resource', resourceReference],
  ['event', eventReference],
] as const;

test.each(registries)(
  'a %s attribute is either ours or one of the semantic conventions, and is described',
  (_, all) => {
    const known = new Set<unknown>(Object.values(conventions));
    for (const { name, describe } of all) {
      expect(name.startsWith('keytrail.') || known.has(name), name).toBe(true);
      expect(describe).not.toBe('');
    }
    expect(new Set(all.map(({ name }) => name)).size).toBe(all.length);
  },
);

const root = join(import.meta.dirname, '../../..');

function sources(): string {
  const folders = ['packages', 'services'].flatMap((parent) =>
    readdirSync(join(root, parent)).map((name) => join(root, parent, name, 'src')),
  );
  return folders
    .flatMap((folder) =>
      readdirSync(folder, { recursive: true, withFileTypes: true }).filter(({ name }) => name.endsWith('.ts')),
    )
    .map(({ parentPath, name }) => join(parentPath, name))
    .filter((path) => !path.endsWith('telemetry/src/attributes.ts') && !path.includes('/generated/'))
    .map((path) => readFileSync(path, 'utf8'))
    .join('\n');
}

test('every attribute that is declared is used', () => {
  const text = sources();
  const unused = [
    ['attr', attr],
    ['resourceAttr', resourceAttr],
    ['eventAttr', eventAttr],
  ].flatMap(([registry, names]) =>
    Object.entries(names as Record<string, string>)
      // The SDK knows OpenTelemetry's API alone, and writes the names out.
      .filter(([key, name]) => !new RegExp(`\\b${registry}\\.${key}\\b`).test(text) && !text.includes(`'${name}'`))
      .map(([, name]) => name),
  );
  expect(unused).toEqual([]);
});

test('the reference shows each of them', () => {
  const page = readFileSync(join(root, 'docs/attributes/README.md'), 'utf8');
  for (const [, all] of registries)
    for (const { name, describe } of all) expect(page).toContain(`| \`${name}\` | ${describe} |`);
});
