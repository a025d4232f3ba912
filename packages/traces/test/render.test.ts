import { stripVTControlCharacters } from 'node:util';
import { expect, test } from 'vitest';
import { assembleTrace, renderTrace } from '../src/index.ts';
import { missedRead, span } from './fixture.ts';

const tree = assembleTrace(missedRead);

test('a miss is shown with its cause at the hop that found it', async () => {
  await expect(renderTrace(tree, { width: 110, color: false })).toMatchFileSnapshot('golden/missed-read.txt');
});

test('a narrow terminal cuts operations, never durations', async () => {
  const text = renderTrace(tree, { width: 64, color: false });
  expect(Math.max(...text.split('\n').map((line) => line.length))).toBeLessThanOrEqual(64);
  await expect(text).toMatchFileSnapshot('golden/missed-read-narrow.txt');
});

test('colours change nothing but colours', async () => {
  const coloured = renderTrace(tree, { width: 110, color: true });
  expect(stripVTControlCharacters(coloured)).toBe(renderTrace(tree, { width: 110, color: false }));
  await expect(coloured).toMatchFileSnapshot('golden/missed-read-colour.txt');
});

test('a depth beyond the width is still drawn, one line per span', () => {
  const deep = Array.from({ length: 60 }, (_, i) =>
    span('session', (i + 1).toString(16), i === 0 ? '' : i.toString(16), `step ${i}`, [i, 1]),
  );
  const lines = renderTrace(assembleTrace(deep), { width: 60, color: false }).trimEnd().split('\n');
  expect(lines).toHaveLength(62);
  expect(lines.every((line) => line.length <= 60)).toBe(true);
});

test('nothing is shown as nothing', () => {
  expect(renderTrace(assembleTrace([]))).toBe('no spans\n');
});
