import {
  assembleTrace,
  type LinkedTrace,
  noLoss,
  type TraceLoss,
  type TraceReport,
  type TraceTree,
} from '@keytrail/traces';
import type { TraceSource } from './source.ts';

/** A trace that another one points to, as it was found; without a tree when the source does not have it. */
export interface FoundTrace extends LinkedTrace {
  readonly tree?: TraceTree;
  /** What the source says that it lacks. */
  readonly loss: TraceLoss;
}

/** A trace may point to many: the first ones, which are the earliest hops', are looked at. */
const linkedAtMost = 8;

export async function readLinked(report: TraceReport, source: TraceSource): Promise<FoundTrace[]> {
  const ids = [...new Set(report.linked.map(({ traceId }) => traceId))].slice(0, linkedAtMost);
  const found = new Map<string, Pick<FoundTrace, 'tree' | 'loss'>>();
  for (const id of ids) {
    const spans = await source.read(id);
    if (spans.length > 0) found.set(id, { tree: assembleTrace(spans), loss: source.lossOf(id) });
  }
  return report.linked
    .filter(({ traceId }) => ids.includes(traceId))
    .map((link) => ({ ...link, loss: noLoss, ...found.get(link.traceId) }));
}
