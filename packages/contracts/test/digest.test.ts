import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { contractDigest, contractFiles } from '../src/digest.ts';

test('the digest of the contracts covers every file of them, and stays as it is', () => {
  const generated = join(import.meta.dirname, '../src/gen');
  const all = readdirSync(join(generated, 'keytrail'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('_pb.ts'))
    .map((file) => `keytrail/${file.replace(/_pb\.ts$/, '')}`);
  expect([...contractFiles().keys()].map((name) => name.replace(/\.proto$/, ''))).toEqual(all.sort());
  expect(contractDigest()).toMatch(/^[0-9a-f]{64}$/);
  expect(contractDigest()).toBe(contractDigest());
});
