import { buildsOf, missFinders, operationOf, type Role, roleOf, statusOf } from './describe-span.ts';
import type { MissingHop } from './expected-hops.ts';
import { findMissingHops } from './expected-hops.ts';
import { noLoss, type TraceLoss } from './loss.ts';
import type { TraceAttributes, TraceSpan } from './span.ts';
import type { TraceTree } from './tree.ts';
import { walkTrace } from './tree.ts';

/** One hop of a trace; `depth` and the order make the tree. */
export interface Hop {
  readonly spanId: string;
  readonly parentSpanId: string;
  readonly depth: number;
  readonly service: string;
  readonly instance: string;
  readonly build: string;
  readonly kind: Role;
  readonly operation: string;
  /** From the start of the trace, in ms. */
  readonly startMs: number;
  readonly durationMs: number;
  /** Canonical code of the answer by name; ERROR for other failures; '' for neither. */
  readonly status: string;
  /** Cause of the miss at the hop that found it; the hops above only saw it. */
  readonly cause: string;
  readonly recovery: string;
  readonly reason: string;
  readonly error: string;
  readonly orphan: boolean;
  /** Those that the project's registry knows; of users and devices only pseudonyms. */
  readonly attributes: TraceAttributes;
  readonly links: readonly { readonly traceId: string; readonly spanId: string }[];
}

/** A trace for programs: what `keytrail trace --json` prints. */
export interface TraceReport {
  readonly traceId: string;
  /** RFC 3339 */
  readonly startedAt: string;
  readonly durationMs: number;
  /** False when a hop is missing for certain, spans were dropped, or the backend gave only a part. */
  readonly whole: boolean;
  /** Spans that came to the store and were beyond its bounds; 0 of backends that do not tell. */
  readonly dropped: number;
  /** True when the backend says that it gave only a part, as Grafana Tempo does of what is longer than it gives. */
  readonly partial: boolean;
  readonly spans: number;
  readonly orphans: number;
  readonly services: readonly {
    readonly service: string;
    readonly spans: number;
    readonly builds: readonly string[];
  }[];
  /** Services that answered with more than one build. */
  readonly mixedBuilds: readonly string[];
  readonly misses: readonly {
    readonly spanId: string;
    readonly service: string;
    readonly cause: string;
    readonly recovery: string;
  }[];
  /** Each before its children, by start. */
  readonly hops: readonly Hop[];
  readonly missing: readonly MissingHop[];
  /** Traces that hops point to; the last write, where a miss does. */
  readonly linked: readonly LinkedTrace[];
}

export interface LinkedTrace {
  readonly traceId: string;
  readonly spanId: string;
  /** The hop that points to it. */
  readonly from: string;
  readonly relation: 'last_write' | 'continued_from';
}

/** `shows` says which attributes may be told; of the loss is what the backend says that the spans lack. */
export function reportTrace(
  tree: TraceTree,
  shows: (name: string) => boolean,
  loss: Partial<TraceLoss> = {},
): TraceReport {
  const { dropped, partial } = { ...noLoss, ...loss };
  const startMs = tree.spans[0]?.startMs ?? 0;
  const endMs = tree.spans.reduce((latest, span) => Math.max(latest, span.startMs + span.durationMs), startMs);
  const finders = missFinders(tree);
  const missing = findMissingHops(tree);
  const hops = [...walkTrace(tree.roots)].map(({ node, depth }) =>
    hopOf(node.span, { depth, orphan: node.orphan, startMs, foundMiss: finders.has(node.span.spanId), shows }),
  );
  const services = buildsOf(tree).map(({ service, builds }) => ({
    service,
    spans: tree.spans.filter((span) => span.service === service).length,
    builds,
  }));
  return {
    traceId: tree.id,
    startedAt: new Date(startMs).toISOString(),
    durationMs: endMs - startMs,
    whole: dropped === 0 && !missing.some((hop) => hop.certain) && !partial,
    dropped,
    partial,
    spans: tree.spans.length,
    orphans: tree.orphans.length,
    services,
    mixedBuilds: services.filter(({ builds }) => builds.length > 1).map(({ service }) => service),
    misses: hops
      .filter(({ cause }) => cause !== '')
      .map(({ spanId, service, cause, recovery }) => ({ spanId, service, cause, recovery })),
    hops,
    missing,
    linked: linksOf(tree),
  };
}

function hopOf(
  span: TraceSpan,
  of: {
    readonly depth: number;
    readonly orphan: boolean;
    readonly startMs: number;
    readonly foundMiss: boolean;
    readonly shows: (name: string) => boolean;
  },
): Hop {
  const { attributes } = span;
  return {
    spanId: span.spanId,
    parentSpanId: span.parentSpanId,
    depth: of.depth,
    service: span.service,
    instance: span.instance,
    build: span.build,
    kind: roleOf(span),
    operation: operationOf(span),
    startMs: span.startMs - of.startMs,
    durationMs: span.durationMs,
    status: statusOf(span),
    cause: of.foundMiss ? text(attributes['keytrail.miss.cause']) : '',
    recovery: of.foundMiss ? text(attributes['keytrail.recovery']) : '',
    reason: text(attributes['keytrail.reason']),
    error: span.status === 'error' ? (span.statusMessage.split('\n')[0] ?? '') : '',
    orphan: of.orphan,
    attributes: presentable(attributes, of.shows),
    links: span.links.map(({ traceId, spanId }) => ({ traceId, spanId })),
  };
}

/** The last write is what a miss points to; other spans point to what they go on with. */
function linksOf(tree: TraceTree): LinkedTrace[] {
  const found = new Map<string, LinkedTrace>();
  for (const span of tree.spans) {
    for (const { traceId, spanId } of span.links) {
      if (traceId === tree.id || found.has(`${traceId} ${spanId}`)) continue;
      const relation = span.attributes['keytrail.miss'] === true ? 'last_write' : 'continued_from';
      found.set(`${traceId} ${spanId}`, { traceId, spanId, from: span.spanId, relation });
    }
  }
  return [...found.values()];
}

const pseudonymous = new Set(['keytrail.user', 'keytrail.device']);
const longestText = 500;

/** What leaves the machine with a report: registered attributes by name, and of users and devices nothing but pseudonyms. */
function presentable(attributes: TraceAttributes, shows: (name: string) => boolean): TraceAttributes {
  const told: Record<string, unknown> = {};
  // By name: each backend has an order of its own.
  for (const [name, value] of Object.entries(attributes).sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (!shows(name)) continue;
    if (pseudonymous.has(name) && !/^[0-9a-f]{16}$/.test(String(value))) told[name] = 'left out: no pseudonym';
    else told[name] = typeof value === 'string' ? value.slice(0, longestText) : value;
  }
  return told;
}

function text(value: unknown): string {
  return value === undefined || value === null ? '' : String(value).slice(0, longestText);
}
