import type { TraceSpan } from './span.ts';
import type { TraceTree } from './tree.ts';
import { walkTrace } from './tree.ts';

/** What a span does, and how that is drawn. */
export const symbols = {
  calls: '→',
  serves: '●',
  store: '▪',
  publishes: '⇢',
  processes: '⇠',
  works: '·',
} as const;

export type Role = keyof typeof symbols;

export function roleOf(span: TraceSpan): Role {
  if (span.attributes['db.system.name'] !== undefined) return 'store';
  switch (span.kind) {
    case 'server':
      return 'serves';
    case 'client':
      return 'calls';
    case 'producer':
      return 'publishes';
    case 'consumer':
      return 'processes';
    default:
      return 'works';
  }
}

export function operationOf(span: TraceSpan): string {
  const method = span.attributes['rpc.method'];
  if (typeof method === 'string') return shortMethod(method);
  const store = span.attributes['db.system.name'];
  return typeof store === 'string' && !span.name.includes(store) ? `${store} ${span.name}` : span.name;
}

/** `keytrail.session.v1.SessionService/GetInitialSession` without its package. */
export function shortMethod(method: string): string {
  return method.replace(/^(?:[a-z0-9_]+\.)+(?=[A-Z])/, '');
}

export function statusOf(span: TraceSpan): string {
  const code = span.attributes['rpc.status_code'];
  if (typeof code === 'string') return code;
  return span.status === 'error' ? 'ERROR' : '';
}

/** Ids of the spans that found a miss. Every hop above sees it in the answer; the cause belongs to the one that found it. */
export function missFinders(tree: TraceTree): ReadonlySet<string> {
  const missed = tree.spans.filter((span) => span.attributes['keytrail.miss.cause'] !== undefined);
  const byId = new Map(tree.spans.map((span) => [span.spanId, span]));
  const above = new Set<string>();
  for (const span of missed) {
    for (
      let at = byId.get(span.parentSpanId);
      at !== undefined && !above.has(at.spanId);
      at = byId.get(at.parentSpanId)
    )
      above.add(at.spanId);
  }
  return new Set(missed.map((span) => span.spanId).filter((id) => !above.has(id)));
}

export function formatMs(ms: number): string {
  return ms >= 10_000 ? `${(ms / 1_000).toFixed(1)} s` : `${ms.toFixed(ms >= 100 ? 0 : ms >= 10 ? 1 : 2)} ms`;
}

export function clip(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;
}

export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}

/** Builds of each service, in order of the names; a service without any has none. */
export function buildsOf(tree: TraceTree): readonly { readonly service: string; readonly builds: readonly string[] }[] {
  const builds = new Map<string, Set<string>>(tree.services.map((service) => [service, new Set<string>()]));
  for (const { node } of walkTrace(tree.roots))
    if (node.span.build) builds.get(node.span.service)?.add(node.span.build);
  return [...builds].map(([service, set]) => ({ service, builds: [...set].sort() }));
}
