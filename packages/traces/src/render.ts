import { styleText } from 'node:util';
import {
  buildsOf,
  clip,
  counted,
  formatMs,
  missFinders,
  operationOf,
  roleOf,
  shortMethod,
  statusOf,
  symbols,
} from './describe-span.ts';
import type { MissingHop } from './expected-hops.ts';
import type { TraceSpan } from './span.ts';
import type { TraceNode, TraceTree } from './tree.ts';

export interface RenderOptions {
  /** Columns; the terminal's, or 120. At least 60. */
  readonly width?: number;
  /** ANSI colours; by default when stdout is a terminal that has them. */
  readonly color?: boolean;
  /** Drawn below the hops that they would follow, and summed up in the end. */
  readonly missing?: readonly MissingHop[];
  /** Which builds were at work: once per service, and at each hop of a service with several. */
  readonly builds?: boolean;
}

type Style = Parameters<typeof styleText>[0];

interface Note {
  readonly text: string;
  readonly style: Style;
}

const legend = Object.entries(symbols)
  .map(([role, symbol]) => `${symbol} ${role}`)
  .join('  ');
const statusWidth = 18;

/** The tree of hops as text: service, kind, operation, duration, status, and the cause at the hop that missed. */
export function renderTrace(tree: TraceTree, options: RenderOptions = {}): string {
  const terminal = process.stdout;
  const width = Math.max(60, options.width ?? terminal.columns ?? 120);
  const color = options.color ?? (terminal.isTTY === true && terminal.hasColors());
  const paint = (style: Style, text: string): string =>
    color && text !== '' ? styleText(style, text, { validateStream: false }) : text;
  if (tree.spans.length === 0) return 'no spans\n';

  const notesOf = describeNotes(tree, options);
  const lines = [clip(headline(tree), width)];
  const several = tree.roots.length > 1;
  const waiting = tree.roots
    .map((node, at) => ({
      node,
      above: '',
      branch: several ? branchOf(at, tree.roots) : '',
      last: isLast(at, tree.roots),
    }))
    .reverse();
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const { node, above, branch, last } = next;
    drawHop(node.span, above + branch);
    // What is deeper than the width is clipped in any case.
    const below = above.length > 4 * width ? above : above + (branch === '' ? '' : last ? '   ' : '│  ');
    const gap = below + (node.children.length > 0 ? '│  ' : '   ');
    for (const { text, style } of notesOf(node))
      lines.push(paint('dim', clip(gap, width)) + paint(style, clip(text, Math.max(0, width - gap.length))));
    for (let at = node.children.length - 1; at >= 0; at--)
      waiting.push({
        node: node.children[at] as TraceNode,
        above: below,
        branch: branchOf(at, node.children),
        last: isLast(at, node.children),
      });
  }
  lines.push(paint('dim', clip(legend, width)));
  if (options.builds) lines.push(...describeBuilds(tree).map(({ text, style }) => paint(style, clip(text, width))));
  return `${lines.join('\n')}\n`;

  function drawHop(span: TraceSpan, indent: string): void {
    const [duration, status] = [formatMs(span.durationMs).padStart(10), printable(statusOf(span))];
    const room = width - duration.length - 1 - statusWidth;
    const service = printable(span.service);
    const left = clip(`${indent}${service} ${symbols[roleOf(span)]} ${printable(operationOf(span))}`, room).padEnd(
      room,
    );
    const tail = `${duration} ${clip(status, statusWidth)}`.trimEnd();
    const failed = span.status === 'error';
    const shown = left.startsWith(`${indent}${service} `)
      ? paint('dim', indent) + paint('cyan', service) + left.slice(indent.length + service.length)
      : left;
    lines.push(
      `${shown}${paint(failed ? 'red' : status === '' || status === 'OK' ? 'dim' : 'yellow', tail)}`.trimEnd(),
    );
  }
}

function isLast(at: number, siblings: readonly unknown[]): boolean {
  return at === siblings.length - 1;
}

function branchOf(at: number, siblings: readonly unknown[]): string {
  return isLast(at, siblings) ? '└─ ' : '├─ ';
}

/** Names come from whoever sent the spans: nothing of them steers the terminal. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '\uFFFD');
}

function headline(tree: TraceTree): string {
  const start = tree.spans[0]?.startMs ?? 0;
  const end = tree.spans.reduce((latest, span) => Math.max(latest, span.startMs + span.durationMs), start);
  const parts = [
    `trace ${tree.id}`,
    counted(tree.spans.length, 'span'),
    formatMs(end - start),
    counted(tree.services.length, 'service'),
    counted(tree.orphans.length, 'orphan'),
  ];
  return parts.join(' · ');
}

/** One line per service: which build answered; more than one is a fleet in between two releases. */
function describeBuilds(tree: TraceTree): Note[] {
  return buildsOf(tree).map(({ service, builds }) => {
    const name = printable(service);
    if (builds.length === 0) return { text: `build of ${name}: not told`, style: 'dim' };
    const told = builds.map(printable).join(', ');
    return builds.length === 1
      ? { text: `build of ${name}: ${told}`, style: 'dim' }
      : { text: `! ${builds.length} builds of ${name} in one trace: ${told}`, style: 'magenta' };
  });
}

function describeNotes(tree: TraceTree, options: RenderOptions): (node: TraceNode) => Note[] {
  const spans = new Map(tree.spans.map((span) => [span.spanId, span]));
  const finders = missFinders(tree);
  const missing = options.missing ?? [];
  const below = Map.groupBy(missing, (hop) => hop.below);
  const above = new Map(missing.flatMap((hop) => hop.above.map((spanId) => [spanId, hop])));
  const mixed = new Set(
    options.builds
      ? buildsOf(tree)
          .filter(({ builds }) => builds.length > 1)
          .map(({ service }) => service)
      : [],
  );
  return (node) => [
    ...orphanNotes(node, above.get(node.span.spanId)),
    ...notesOf(node.span, finders.has(node.span.spanId), spans),
    ...(mixed.has(node.span.service)
      ? [{ text: `build ${printable(node.span.build)}`, style: 'magenta' as Style }]
      : []),
    ...(below.get(node.span.spanId) ?? []).map(missingNote),
  ];
}

function orphanNotes({ span, orphan }: TraceNode, hop: MissingHop | undefined): Note[] {
  if (hop) return [missingNote(hop)];
  return orphan ? [{ text: `? its parent ${span.parentSpanId} is missing`, style: 'magenta' }] : [];
}

/** `✗ MISSING` for what must have been, `?` for what may rightly not be. */
function missingNote(hop: MissingHop): Note {
  const where = hop.below === '' ? 'above' : 'below';
  const what = `${printable(hop.service)} ${printable(shortMethod(hop.operation))}`;
  return hop.certain
    ? { text: `✗ MISSING ${where}: ${what}`, style: ['magenta', 'bold'] }
    : { text: `? none ${where}: ${what}`, style: 'dim' };
}

/** The missing hops in words, each with why it is likely missing; those of one kind together. '' for none. */
export function renderMissing(missing: readonly MissingHop[], options: { readonly width?: number } = {}): string {
  const width = Math.max(60, options.width ?? 120);
  const alike = Map.groupBy(
    missing,
    (hop) => `${hop.certain} ${hop.code} ${hop.service} ${hop.certain ? hop.operation : ''} ${hop.likely[0]}`,
  );
  const lines = [...alike.values()]
    .sort(([a], [b]) => Number(b?.certain) - Number(a?.certain))
    .flatMap((hops) => {
      const [hop] = hops as [MissingHop, ...MissingHop[]];
      const times = hops.length > 1 ? ` (${hops.length} times)` : '';
      const what = `${printable(hop.service)} ${printable(shortMethod(hop.operation))}${times}`;
      return [
        clip(`${hop.certain ? '✗ missing' : '? perhaps missing'}: ${what}  [${hop.code}]`, width),
        ...hop.likely.map((why, at) => `    ${at === 0 ? 'likely' : 'or'}: ${why}`),
      ];
    });
  return lines.length === 0 ? '' : `${lines.join('\n')}\n`;
}

function notesOf(span: TraceSpan, foundMiss: boolean, spans: ReadonlyMap<string, TraceSpan>): Note[] {
  const notes: Note[] = [];
  if (foundMiss) {
    const recovery = span.attributes['keytrail.recovery'];
    const cause = printable(String(span.attributes['keytrail.miss.cause']));
    notes.push({
      text: `✗ MISS ${cause}${recovery ? ` · ${printable(String(recovery))}` : ''}`,
      style: ['red', 'bold'],
    });
  }
  const reason = span.attributes['keytrail.reason'];
  if (reason !== undefined) notes.push({ text: `✗ ${printable(String(reason))}`, style: 'yellow' });
  if (span.status === 'error' && span.statusMessage !== '')
    notes.push({ text: `! ${printable(span.statusMessage.split('\n')[0] ?? '')}`, style: 'red' });
  for (const link of span.links) {
    const here = spans.get(link.spanId);
    notes.push({
      text: here
        ? `↗ linked to ${printable(here.service)} ${printable(here.name)}`
        : `↗ linked to trace ${link.traceId}, span ${link.spanId}`,
      style: 'blue',
    });
  }
  return notes;
}
