import fc from 'fast-check';
import { expect, test } from 'vitest';
import { assembleTrace, walkTrace } from '../src/index.ts';
import { missedRead, span } from './fixture.ts';

test('spans become a tree by parent, in order of start', () => {
  const tree = assembleTrace(missedRead.toReversed());
  expect(tree.services).toEqual(['client', 'conversation', 'presence', 'session']);
  expect(tree.roots.map((root) => root.span.name)).toEqual(['readSession', 'notify']);
  const server = tree.roots[0]?.children[0]?.children[0];
  expect(server?.children.map((child) => child.span.spanId.at(-1))).toEqual(['4', '6', '5']);
});

test('an orphan is a span that names a parent that is not there; its children are not', () => {
  const tree = assembleTrace(missedRead);
  expect(tree.orphans.map((orphan) => orphan.name)).toEqual(['notify']);
  expect(tree.roots.map((root) => root.orphan)).toEqual([false, true]);
});

test('a span that came twice counts once, a span of another trace not at all', () => {
  const one = span('session', '1', '', 'a', [0, 1]);
  const tree = assembleTrace([one, one, { ...one, traceId: 'f'.repeat(32), spanId: '2'.padStart(16, '0') }]);
  expect(tree.spans).toEqual([one]);
});

test('in whichever order a backend gives the spans, the tree is the same', () => {
  const alike = ['3', '1', '2', '5', '4'].map((id) => span('session', id, '9', id, [1, 2]));
  const spans = [span('session', '9', '', 'root', [0, 5]), ...alike];
  const [tree, turned] = [assembleTrace(spans), assembleTrace(spans.toReversed())];
  expect(turned).toEqual(tree);
  expect(tree.roots[0]?.children.map((child) => child.span.name)).toEqual(['1', '2', '3', '4', '5']);
});

test('whatever the parents say, every span stands in the tree exactly once', () => {
  const ids = fc.integer({ min: 1, max: 12 });
  fc.assert(
    fc.property(fc.array(fc.tuple(ids, fc.option(ids), fc.nat(20)), { maxLength: 20 }), (rows) => {
      const spans = rows.map(([id, parent, at]) =>
        span('s', `${id}`, parent === null ? '' : `${parent}`, 'n', [at, 1]),
      );
      const tree = assembleTrace(spans);
      const walked = [...walkTrace(tree.roots)].map(({ node }) => node.span.spanId);
      expect(walked.toSorted()).toEqual([...new Set(spans.map((one) => one.spanId))].toSorted());
    }),
  );
});
