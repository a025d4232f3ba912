import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { rendered, wireFormatExamples } from './wire-format-examples.ts';

const document = readFileSync(new URL('../../../docs/wire-formats.md', import.meta.url), 'utf8');
const blocks = new Map(
  Array.from(document.matchAll(/^```text ([a-z-]+)\n(.*?)\n```$/gms), ([, name, content]) => [name, content]),
);

describe('docs/wire-formats.md', () => {
  it.each(Object.entries(wireFormatExamples))('shows %s as the code makes it', (name, example) => {
    expect(blocks.get(name)).toBe(rendered(example));
  });

  it('shows nothing that is not checked here', () => {
    expect([...blocks.keys()].sort()).toEqual(Object.keys(wireFormatExamples).sort());
  });
});
