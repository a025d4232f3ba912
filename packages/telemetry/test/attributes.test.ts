import * as conventions from '@opentelemetry/semantic-conventions/incubating';
import { expect, test } from 'vitest';
import { attributeReference } from '../src/index.ts';

test('an attribute is either ours or one of the semantic conventions, and is described', () => {
  const known = new Set<unknown>(Object.values(conventions));
  for (const { name, describe } of attributeReference) {
    expect(name.startsWith('keytrail.') || known.has(name), name).toBe(true);
    expect(describe).not.toBe('');
  }
  expect(new Set(attributeReference.map(({ name }) => name)).size).toBe(attributeReference.length);
});
