import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { assembleTrace, readTraceText, reportTrace } from '../src/index.ts';

// Six spans as they were sent, five of a real miss and one with what encodings differ in, and what real backends answered of them: Jaeger 1.62,
// and Grafana Tempo at revision 87c2dc380cec of May 2025, by each of their APIs.
const answered = (name: string) =>
  reportTrace(
    assembleTrace(readTraceText(readFileSync(join(import.meta.dirname, 'answered', `${name}.json`), 'utf8'))),
    // Jaeger says of each span how it came, and has no lists: no attribute of the registry is one.
    (attribute) => attribute !== 'list' && attribute !== 'internal.span.format',
  );

test.each(['jaeger-1.62', 'jaeger-1.62-v3', 'tempo-2025-05', 'tempo-2025-05-v2'])(
  'what %s answered of a miss says the same as what was sent',
  (name) => {
    const sent = answered('sent');
    expect(sent.hops).toHaveLength(6);
    expect(JSON.stringify(answered(name), null, 1)).toBe(JSON.stringify(sent, null, 1));
  },
);
