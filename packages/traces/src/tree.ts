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
  for (const span of own.toSorted(inOrder))
    if (!nodes.has(span.spanId)) nodes.set(span.spanId, { span, children: [], orphan: false });

  const roots: GrowingNode[] = [];
  for (const node of nodes.values()) {
    const parent = node.span.parentSpanId === node.span.spanId ? undefined : nodes.get(node.span.parentSpanId);
    if (parent !== undefined) parent.children.push(node);
    else roots.push(node.span.parentSpanId === '' ? node : Object.assign(node, { orphan: true }));
  }
  roots.push(...cutCircles(nodes, roots));
  roots.sort((a, b) => a.span.startMs - b.span.startMs);
  const sorted = [...nodes.values()].map((node) => node.span);
  return {
    id,
    services: [...new Set(sorted.map((span) => span.service))].sort(),
    spans: sorted,
    orphans: roots.filter((node) => node.orphan).map((node) => node.span),
    roots,
  };
}

/** By start, longer ones first; of those that are alike in both by id, as each backend gives them in an order of its own. */
function inOrder(a: TraceSpan, b: TraceSpan): number {
  return (
    a.startMs - b.startMs || b.durationMs - a.durationMs || (a.spanId < b.spanId ? -1 : Number(a.spanId > b.spanId))
  );
}

/** Spans that are their own ancestors, which only broken input says, are reached from no root: the first of each circle becomes one. */
function cutCircles(nodes: ReadonlyMap<string, GrowingNode>, roots: readonly GrowingNode[]): GrowingNode[] {
  const reached = new Set<TraceNode>();
  for (const { node } of walkTrace(roots)) reached.add(node);
  const cut: GrowingNode[] = [];
  for (const node of nodes.values()) {
    if (reached.has(node)) continue;
    // Above it is a circle; the climb ends where it comes back.
    const climbed = new Set<GrowingNode>();
    let at = node;
    for (let up = nodes.get(at.span.parentSpanId); up && !climbed.has(at); up = nodes.get(at.span.parentSpanId)) {
      climbed.add(at);
      at = up;
    }
    const parent = nodes.get(at.span.parentSpanId);
    if (parent) parent.children = parent.children.filter((child) => child !== at);
    cut.push(Object.assign(at, { orphan: true }));
    for (const { node: below } of walkTrace([at])) reached.add(below);
  }
  return cut;
}

/** All nodes, each before its children, with its depth. */
export function* walkTrace(roots: readonly TraceNode[]): Generator<{ node: TraceNode; depth: number }> {
  const waiting = roots.map((node) => ({ node, depth: 0 })).reverse();
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    yield next;
    const { children } = next.node;
    for (let at = children.length - 1; at >= 0; at--)
      waiting.push({ node: children[at] as TraceNode, depth: next.depth + 1 });
  }
}
