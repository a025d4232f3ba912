import { setTimeout as pause } from 'node:timers/promises';
import { readTrace } from './backend.ts';
import type { TraceSpan } from './span.ts';
import type { TraceTree } from './tree.ts';
import { assembleTrace } from './tree.ts';

export interface FetchTraceOptions {
  /** When the trace is complete; by default when it has no orphans and stopped growing for half a second. */
  readonly until?: (tree: TraceTree) => boolean;
  /** How long to wait for that; the tree as it is then is returned. 5,000 ms by default. */
  readonly timeoutMs?: number;
  /** Between two looks, in ms; 50 by default. */
  readonly pollMs?: number;
}

/** Thrown when the store knows no span of the trace by the end of the wait. */
export class TraceNotFound extends Error {
  readonly traceId: string;

  constructor(traceId: string) {
    super(`no span of trace ${traceId} has arrived; was it sampled, kept, and not too old?`);
    this.name = 'TraceNotFound';
    this.traceId = traceId;
  }
}

const quietMs = 500;

/** Reads a trace from a trace store, waiting until it is complete: spans arrive in batches. Throws TraceNotFound. */
export function fetchTrace(url: string, id: string, options: FetchTraceOptions = {}): Promise<TraceTree> {
  return awaitTrace(() => readTrace({ url, dialect: 'keytrail' }, id), id, options);
}

/** As fetchTrace, of spans from anywhere. */
export async function awaitTrace(
  read: () => Promise<TraceSpan[]>,
  id: string,
  { until, timeoutMs = 5_000, pollMs = 50 }: FetchTraceOptions = {},
): Promise<TraceTree> {
  const endsAt = performance.now() + timeoutMs;
  let tree: TraceTree | undefined;
  let grewAt = performance.now();
  for (;;) {
    const spans = await read();
    if (spans.length > (tree?.spans.length ?? 0)) {
      tree = assembleTrace(spans);
      grewAt = performance.now();
    }
    if (tree !== undefined && (until?.(tree) ?? (tree.orphans.length === 0 && performance.now() - grewAt >= quietMs)))
      return tree;
    if (performance.now() >= endsAt) {
      if (tree === undefined) throw new TraceNotFound(id);
      return tree;
    }
    await pause(pollMs);
  }
}
