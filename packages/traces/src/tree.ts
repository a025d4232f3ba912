import type { TraceSpan } from './span.ts';

export interface TraceNode {
  readonly span: TraceSpan;
  /** By start time. */
  readonly children: readonly TraceNode[];
  /** True when the span names a parent that is not among the spans. */
  readonly orphan: boolean;
}

export interface TraceTree {
  readonly id: string;
  /** By name. */
  readonly services: readonly string[];
  /** By start time. */
  readonly spans: readonly TraceSpan[];
  /** Spans whose parent is named and not among the spans. */
  readonly orphans: readonly TraceSpan[];
  /** The tops of the tree by start time: spans without a parent, and orphans. */
  readonly roots: readonly TraceNode[];
}

interface GrowingNode extends TraceNode {
  children: GrowingNode[];
}

/** Builds the tree of one trace. A span that is there twice counts once; of spans of several traces only the first one's are taken. */
export function assembleTrace(spans: readonly TraceSpan[]): TraceTree {
  const id = spans[0]?.traceId ?? '';
  const nodes = new Map<string, GrowingNode>();
  const own = spans.filter((span) => span.traceId === id);
  for (const span of own.toSorted((a, b) => a.startMs - b.startMs || b.durationMs - a.durationMs))
    if (!nodes.has(span.spanId)) nodes.set(span.spanId, { span, children: [], orphan: false });

  const roots: TraceNode[] = [];
  for (const node of nodes.values()) {
    const parent = nodes.get(node.span.parentSpanId);
    if (parent !== undefined && !descends(parent, node, nodes)) parent.children.push(node);
    else roots.push(node.span.parentSpanId === '' ? node : Object.assign(node, { orphan: true }));
  }
  const sorted = [...nodes.values()].map((node) => node.span);
  return {
    id,
    services: [...new Set(sorted.map((span) => span.service))].sort(),
    spans: sorted,
    orphans: roots.filter((node) => node.orphan).map((node) => node.span),
    roots,
  };
}

/** Whether a span is its own ancestor, which only broken input says. */
function descends(from: GrowingNode, node: GrowingNode, nodes: ReadonlyMap<string, GrowingNode>): boolean {
  const seen = new Set<GrowingNode>();
  for (let at: GrowingNode | undefined = from; at !== undefined; at = nodes.get(at.span.parentSpanId)) {
    if (at === node || seen.has(at)) return true;
    seen.add(at);
  }
  return false;
}

/** All nodes, each before its children, with its depth. */
export function* walkTrace(nodes: readonly TraceNode[], depth = 0): Generator<{ node: TraceNode; depth: number }> {
  for (const node of nodes) {
    yield { node, depth };
    yield* walkTrace(node.children, depth + 1);
  }
}
