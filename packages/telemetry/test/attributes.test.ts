import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import * as conventions from '@opentelemetry/semantic-conventions/incubating';
import { expect, test } from 'vitest';
import { spanAttributeNames } from '../../client/src/span-attributes.ts';
import {
  attr,
  attributeReference,
  eventAttr,
  eventReference,
  linkFromTraceparent,
  resourceAttr,
  resourceReference,
  type Span,
  tracer,
  withSpan,
} from '../src/index.ts';

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

function sources(): { readonly path: string; readonly text: string }[] {
  const folders = ['packages', 'services'].flatMap((parent) =>
    readdirSync(join(root, parent)).map((name) => join(root, parent, name, 'src')),
  );
  return folders
    .flatMap((folder) =>
      readdirSync(folder, { recursive: true, withFileTypes: true }).filter(({ name }) => name.endsWith('.ts')),
    )
    .map(({ parentPath, name }) => join(parentPath, name))
    .filter((path) => !path.endsWith('telemetry/src/attributes.ts') && !path.includes('/generated/'))
    .map((path) => ({ path: relative(root, path), text: readFileSync(path, 'utf8') }));
}

test('every attribute that is declared is used', () => {
  const text = sources()
    .map((source) => source.text)
    .join('\n');
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

test('an attribute that is not declared is refused by its type, where it is written and by way of a variable', () => {
  const more = { [attr.sessionId]: 'S', 'reader.id': 'carol' };
  const anything: Record<string, string> = { 'reader.id': 'carol' };
  const nothing = () => {};
  const refused = (span: Span) => {
    // @ts-expect-error: not in the registry
    span.setAttribute('reader.id', 'carol');
    // @ts-expect-error: not in the registry
    span.setAttributes({ 'reader.id': 'carol' });
    // @ts-expect-error: one of them is not in the registry
    span.setAttributes(more);
    // @ts-expect-error: may be anything
    span.setAttributes(anything);
    // @ts-expect-error: an event of its own could say anything
    span.addEvent('read', { 'reader.id': 'carol' });
    // @ts-expect-error: not in the registry
    span.addLink({ context: span.spanContext(), attributes: { 'reader.id': 'carol' } });
    // @ts-expect-error: not in the registry
    withSpan('gather', { attributes: { 'reader.id': 'carol' } }, nothing);
    // @ts-expect-error: one of them is not in the registry
    withSpan('gather', { attributes: more }, nothing);
    // @ts-expect-error: one of them is not in the registry
    tracer().startSpan('gather', { attributes: more });
    // @ts-expect-error: one of them is not in the registry
    linkFromTraceparent('', more);
  };
  withSpan('gather', { attributes: { [attr.sessionId]: 'S' } }, (span) => span.setAttributes({ [attr.epoch]: 3 }));
  // What is refused is for the compiler alone: `make check` fails when one of these lines is taken.
  expect(refused).toBeTypeOf('function');
});

test('nobody but the recorder and the SDK of devices, which has types of its own, has spans without these types', () => {
  const around = sources().filter(
    ({ path, text }) => text.includes("'@opentelemetry/api'") && !/^packages\/(telemetry|client)\//.test(path),
  );
  expect(around.map(({ path }) => path)).toEqual([]);
});

test('what the SDK of devices writes is declared here too', () => {
  const declared = new Set<string>(attributeReference.map(({ name }) => name));
  expect(spanAttributeNames.filter((name) => !declared.has(name))).toEqual([]);
});
