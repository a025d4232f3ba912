import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Code } from '@connectrpc/connect';
import { helpUrl, type MissCauseName, MissCauseSchema, type ReasonName, ReasonSchema } from '@keytrail/contracts';
import { codeOfReason } from '@keytrail/rpc';
import { describe, expect, test } from 'vitest';
import { checkout, filesBelow } from './files.ts';

const folder = join(checkout, 'docs/reasons');
const reasons = namesOf(ReasonSchema) as ReasonName[];
const causes = namesOf(MissCauseSchema) as MissCauseName[];
const index = readFileSync(join(folder, 'README.md'), 'utf8');
const sources = ['services', 'packages']
  .flatMap((part) => filesBelow(join(checkout, part), '.ts'))
  .filter((file) => file.includes('/src/') && !file.includes('/gen/'))
  .map((file) => readFileSync(file, 'utf8'));

test('each reason and each cause has a page, and each page has one', () => {
  const pages = readdirSync(folder).filter((file) => file !== 'README.md');
  const wanted = new Set([...reasons, ...causes].map((name) => fileOf(name)));
  expect(pages.sort()).toEqual([...wanted].sort());
});

describe.each(reasons)('%s', (name) => {
  const text = pageOf(name);
  const code = grpcName(codeOfReason[name]);

  test('has a page with its name, its status and its metadata', () => {
    expect(text.startsWith(`# ${name}\n`)).toBe(true);
    expect(statusesOf(text)).toContain(code);
    for (const key of metadataOf('common/v1/reason.proto', `REASON_${name}`)) expect(wordsOf(text)).toContain(key);
  });

  test('is in the index with its status', () => {
    expect(index).toContain(`| [${name}](${fileOf(name)}) | \`${code}\` |`);
  });

  test('is sent by some service, or its page says that it is not yet', () => {
    const sent = sources.some((source) => new RegExp(`refuse\\(\\s*'${name}'`).test(source));
    expect(text.includes('Not yet sent')).toBe(!sent);
  });
});

describe.each(causes)('%s as a cause', (name) => {
  test('has a page with its name, its status and its evidence', () => {
    const text = pageOf(name);
    expect(text.startsWith(`# ${name}\n`)).toBe(true);
    expect(statusesOf(text)).toContain('NOT_FOUND');
    for (const key of metadataOf('session/v1/session.proto', `MISS_CAUSE_${name}`))
      expect(wordsOf(text)).toContain(key);
  });

  test('is in the index and in the table of precedence', () => {
    expect(index).toContain(`| [${name}](${fileOf(name)}) | \`NOT_FOUND\` |`);
    expect(index).toMatch(new RegExp(`^\\| \\d+ \\|.*\\[${name}\\]\\(`, 'm'));
  });
});

function namesOf(schema: typeof ReasonSchema | typeof MissCauseSchema): string[] {
  return schema.values.filter(({ number }) => number !== 0).map(({ localName }) => localName);
}

function fileOf(name: ReasonName | MissCauseName): string {
  return helpUrl(name, '').slice(1);
}

function pageOf(name: ReasonName | MissCauseName): string {
  return readFileSync(join(folder, fileOf(name)), 'utf8');
}

/** The codes in the paragraph that begins with `Status:`. */
function statusesOf(text: string): string[] {
  const paragraph = text.split('\n\n').find((part) => part.startsWith('Status: ')) ?? '';
  return [...paragraph.matchAll(/`([A-Z_]+)`/g)].map(([, code = '']) => code);
}

function wordsOf(text: string): string[] {
  return text.match(/[a-z_]+/g) ?? [];
}

/** The keys that the comment of a value lists: `Metadata: field, key_id.` */
function metadataOf(proto: string, value: string): string[] {
  const text = readFileSync(join(checkout, 'proto/keytrail', proto), 'utf8');
  const comment = new RegExp(`((?: *//.*\\n)+) *${value} = `).exec(text)?.[1] ?? '';
  const list = /Metadata: ([^.]*)\./.exec(comment.replaceAll(/\s*\/\/ ?/g, ' '))?.[1] ?? '';
  const keys = list.replaceAll(/\([^)]*\)/g, '').split(',');
  return keys.map((key) => key.trim()).filter((key) => key !== '' && key !== 'none');
}

function grpcName(code: Code): string {
  return code === Code.Canceled
    ? 'CANCELLED'
    : (Code[code] ?? '').replaceAll(/(?<=[a-z])(?=[A-Z])/g, '_').toUpperCase();
}
