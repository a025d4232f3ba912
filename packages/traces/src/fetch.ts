import { setTimeout as pause } from 'node:timers/promises';
import type { TraceSpan } from './span.ts';
import type { TraceTree } from './tree.ts';
import { assembleTrace } from './tree.ts';

export interface FetchTraceOptions {
  /** When the trace is complete; by default when it has no orphans and stopped growing for half a second. */
  readonly until?: (tree: TraceTree) => boolean;
  /** How long to wait for that; the tree as it is then is returned. 5,000 ms by default. */
  readonly timeoutMs?: number;
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

const pollMs = 50;
const quietMs = 500;

/** Reads a trace from a trace store, waiting until it is complete: spans arrive in batches. Throws TraceNotFound. */
export async function fetchTrace(url: string, id: string, options: FetchTraceOptions = {}): Promise<TraceTree> {
  const endsAt = performance.now() + (options.timeoutMs ?? 5_000);
  let tree: TraceTree | undefined;
  let grewAt = performance.now();
  for (;;) {
    const spans = await readSpans(url, id);
    if (spans.length > (tree?.spans.length ?? 0)) {
      tree = assembleTrace(spans);
      grewAt = performance.now();
    }
    if (
      tree !== undefined &&
      (options.until?.(tree) ?? (tree.orphans.length === 0 && performance.now() - grewAt >= quietMs))
    )
      return tree;
    if (performance.now() >= endsAt) {
      if (tree === undefined) throw new TraceNotFound(id);
      return tree;
    }
    await pause(pollMs);
  }
}

async function readSpans(url: string, id: string): Promise<TraceSpan[]> {
  const response = await fetch(new URL(`traces/${id}`, url.endsWith('/') ? url : `${url}/`));
  const body = (await response.json()) as { spans?: TraceSpan[] };
  if (!response.ok && response.status !== 404) throw new Error(`the trace store answered ${response.status}`);
  return body.spans ?? [];
}
