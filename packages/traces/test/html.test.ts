import { expect, test } from 'vitest';
import { assembleTrace, renderTraceHtml, reportTrace } from '../src/index.ts';
import { missedRead, span } from './fixture.ts';

const everything = () => true;

test('what spans say is text in the waterfall, wherever it stands', () => {
  const hostile = `</span></style></script><img src=x onerror='a'>"`;
  const html = renderTraceHtml([
    reportTrace(
      assembleTrace([
        span(hostile, '1', '', hostile, [0, 1], {
          instance: hostile,
          build: hostile,
          status: 'error',
          statusMessage: hostile,
          attributes: { [hostile]: hostile, 'keytrail.miss.cause': hostile, 'keytrail.reason': hostile },
        }),
      ]),
      everything,
    ),
  ]);
  expect(html).toContain('&lt;img src=x');
  expect(html).not.toContain('<img');
  expect(html.match(/<\/script>/g)).toHaveLength(1);
  expect(html.match(/<\/style>/g)).toHaveLength(1);
});

test('the waterfall names no other place, and its policy lets it load nothing', () => {
  const html = renderTraceHtml([reportTrace(assembleTrace(missedRead), everything)]);
  expect(html).toContain(`content="default-src 'none'; style-src 'sha256-`);
  expect(html).not.toMatch(/https?:|\bsrc=|url\(|@import|\bstyle="/);
});

test('what the store dropped, and that a backend gave a part, stands in the waterfall', () => {
  const ofDropped = (dropped: number) =>
    renderTraceHtml([reportTrace(assembleTrace(missedRead), everything, { dropped })]);
  expect(ofDropped(3)).toContain('3 spans of this trace came to the store beyond its bounds and were dropped');
  expect(ofDropped(0)).not.toContain('dropped');
  const ofPart = renderTraceHtml([reportTrace(assembleTrace(missedRead), everything, { partial: true })]);
  expect(ofPart).toContain('gave only a part of this trace');
  expect(ofDropped(0)).not.toContain('only a part');
});

test('thousands of hops, and hundreds within each other, are one page that closes what it opens', () => {
  const deep = Array.from({ length: 6_000 }, (_, n) =>
    span('session', (n + 1).toString(16), n === 0 ? '' : Math.min(n, 300).toString(16), `step ${n}`, [n, 1]),
  );
  const html = renderTraceHtml([reportTrace(assembleTrace(deep), everything)]);
  for (const element of ['ul', 'li', 'details'])
    expect(html.match(new RegExp(`<${element}[ >]`, 'g'))?.length).toBe(
      html.match(new RegExp(`</${element}>`, 'g'))?.length,
    );
  expect(html).toContain('The first 5000 of 6000 hops are shown.');
});
