import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkoutFolder } from '@keytrail/local';
import { describe, expect, it } from 'vitest';
import { guards } from './guards.ts';

const textOf = (file: string) => readFileSync(join(checkoutFolder, file), 'utf8');

/** Whether a file has a test of this name; `%s`, `$name` and `${name}` in a title stand for anything. */
function hasTest(file: string, name: string): boolean {
  const titles = textOf(file).matchAll(/(['"`])((?:\\.|(?!\1).)+)\1/g);
  return [...titles].some(([, , title = '']) => {
    const literal = title.replaceAll("\\'", "'").replaceAll(/[.*+?^{}()|[\]\\]/g, '\\$&');
    const pattern = literal.replaceAll(/%s|\$\\\{\w+\\\}|\$\w+/g, '.+');
    return title.length >= 12 && new RegExp(`(?:^|\\s)${pattern}$`).test(name);
  });
}

describe.each(guards.map((guard) => [guard.name, guard] as const))('the guard %s', (name, guard) => {
  it('stands exactly once where it is switched off', () => {
    for (const { file, find, replace } of guard.switchOff) {
      expect(replace).not.toBe(find);
      expect(textOf(file).split(find).length - 1, `${file}: ${find}`).toBe(1);
    }
  });

  it('has its test', () => {
    expect(hasTest(guard.test.file, guard.test.name), `${guard.test.file}: ${guard.test.name}`).toBe(true);
  });

  it('is named in docs/invariants.md', () => {
    expect(textOf('docs/invariants.md')).toContain(`\`${name}\``);
  });
});

describe('docs/invariants.md', () => {
  it('names every invariant, and each has guards', () => {
    for (let number = 1; number <= 10; number++) {
      expect(textOf('docs/invariants.md')).toContain(`## I${number} – `);
      expect(guards.filter(({ invariant }) => invariant === `I${number}`)).not.toEqual([]);
    }
  });

  it('names no guard that is not there', () => {
    const rows = textOf('docs/invariants.md').matchAll(/^\| `([a-z-]+)` \|/gm);
    expect([...rows].map(([, name]) => name).toSorted()).toEqual(guards.map(({ name }) => name).toSorted());
  });
});
