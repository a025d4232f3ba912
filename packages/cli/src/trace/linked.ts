import { assembleTrace, type LinkedTrace, type TraceReport, type TraceTree } from '@keytrail/traces';
import type { TraceSource } from './source.ts';

/** A trace that another one points to, as it was found; without a tree when the source does not have it. */
export interface FoundTrace extends LinkedTrace {
  readonly tree?: TraceTree;
}

/** A trace may point to many: the first ones, which are the earliest hops', are looked at. */
const linkedAtMost = 8;

export async function readLinked(report: TraceReport, source: TraceSource): Promise<FoundTrace[]> {
  const ids = [...new Set(report.linked.map(({ traceId }) => traceId))].slice(0, linkedAtMost);
  const trees = new Map<string, TraceTree>();
  for (const id of ids) {
    const spans = await source.read(id);
    if (spans.length > 0) trees.set(id, assembleTrace(spans));
  }
  return report.linked
    .filter(({ traceId }) => ids.includes(traceId))
    .map((link) => {
      const tree = trees.get(link.traceId);
      return { ...link, ...(tree && { tree }) };
    });
}
