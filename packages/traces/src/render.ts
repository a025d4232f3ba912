import { styleText } from 'node:util';
import type { TraceSpan } from './span.ts';
import type { TraceNode, TraceTree } from './tree.ts';

export interface RenderOptions {
  /** Columns; the terminal's, or 120. At least 60. */
  readonly width?: number;
  /** ANSI colours; by default when stdout is a terminal that has them. */
  readonly color?: boolean;
}

type Style = Parameters<typeof styleText>[0];

const legend = '→ calls  ● serves  ▪ store  ⇢ publishes  ⇠ processes  · works';

/** The tree of hops as text: service, kind, operation, duration, status, and the cause at the hop that missed. */
export function renderTrace(tree: TraceTree, options: RenderOptions = {}): string {
  const terminal = process.stdout;
  const width = Math.max(60, options.width ?? terminal.columns ?? 120);
  const color = options.color ?? (terminal.isTTY === true && terminal.hasColors());
  const paint = (style: Style, text: string): string =>
    color && text !== '' ? styleText(style, text, { validateStream: false }) : text;
  if (tree.spans.length === 0) return 'no spans\n';

  const names = new Map(tree.spans.map((span) => [span.spanId, span]));
  const lines = [clip(headline(tree), width)];
  tree.roots.forEach((root, at) => {
    drawNode(
      root,
      '',
      tree.roots.length > 1 ? (at === tree.roots.length - 1 ? '└─ ' : '├─ ') : '',
      at === tree.roots.length - 1,
    );
  });
  lines.push(paint('dim', clip(legend, width)));
  return `${lines.join('\n')}\n`;

  function drawNode(node: TraceNode, above: string, branch: string, last: boolean): void {
    const { span } = node;
    const indent = above + branch;
    const [duration, status] = [formatMs(span.durationMs).padStart(10), statusOf(span)];
    const room = width - duration.length - 1 - statusWidth;
    const left = clip(`${indent}${span.service} ${symbolOf(span)} ${operationOf(span)}`, room).padEnd(room);
    const tail = `${duration} ${clip(status, statusWidth)}`.trimEnd();
    const failed = span.status === 'error';
    const shown = left.startsWith(`${indent}${span.service} `)
      ? paint('dim', indent) + paint('cyan', span.service) + left.slice(indent.length + span.service.length)
      : left;
    lines.push(
      `${shown}${paint(failed ? 'red' : status === '' || status === 'OK' ? 'dim' : 'yellow', tail)}`.trimEnd(),
    );

    const below = above + (branch === '' ? '' : last ? '   ' : '│  ');
    const notes = notesOf(node, names);
    const gap = below + (node.children.length > 0 ? '│  ' : '   ');
    for (const { text, style } of notes) lines.push(paint('dim', gap) + paint(style, clip(text, width - gap.length)));
    node.children.forEach((child, at) => {
      const isLast = at === node.children.length - 1;
      drawNode(child, below, isLast ? '└─ ' : '├─ ', isLast);
    });
  }
}

const statusWidth = 18;

function headline(tree: TraceTree): string {
  const start = Math.min(...tree.spans.map((span) => span.startMs));
  const end = Math.max(...tree.spans.map((span) => span.startMs + span.durationMs));
  const parts = [
    `trace ${tree.id}`,
    counted(tree.spans.length, 'span'),
    formatMs(end - start),
    counted(tree.services.length, 'service'),
    counted(tree.orphans.length, 'orphan'),
  ];
  return parts.join(' · ');
}

function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}

function notesOf(node: TraceNode, names: ReadonlyMap<string, TraceSpan>): { text: string; style: Style }[] {
  const { span } = node;
  const notes: { text: string; style: Style }[] = [];
  if (node.orphan) notes.push({ text: `? its parent ${span.parentSpanId} is missing`, style: 'magenta' });
  const cause = span.attributes['keytrail.miss.cause'];
  // Every hop above sees the miss in the answer; the cause belongs to the one that found it.
  if (cause !== undefined && !node.children.some(missed)) {
    const recovery = span.attributes['keytrail.recovery'];
    notes.push({ text: `✗ MISS ${cause}${recovery ? ` · ${recovery}` : ''}`, style: ['red', 'bold'] });
  }
  const reason = span.attributes['keytrail.reason'];
  if (reason !== undefined) notes.push({ text: `✗ ${reason}`, style: 'yellow' });
  if (span.status === 'error' && span.statusMessage !== '')
    notes.push({ text: `! ${span.statusMessage.split('\n')[0]}`, style: 'red' });
  for (const link of span.links) {
    const here = names.get(link.spanId);
    notes.push({
      text: here
        ? `↗ linked to ${here.service} ${here.name}`
        : `↗ linked to trace ${link.traceId}, span ${link.spanId}`,
      style: 'blue',
    });
  }
  return notes;
}

function missed(node: TraceNode): boolean {
  return node.span.attributes['keytrail.miss.cause'] !== undefined || node.children.some(missed);
}

function symbolOf(span: TraceSpan): string {
  if (span.attributes['db.system.name'] !== undefined) return '▪';
  switch (span.kind) {
    case 'server':
      return '●';
    case 'client':
      return '→';
    case 'producer':
      return '⇢';
    case 'consumer':
      return '⇠';
    default:
      return '·';
  }
}

function operationOf(span: TraceSpan): string {
  const method = span.attributes['rpc.method'];
  if (typeof method === 'string') return method.replace(/^(?:[a-z0-9_]+\.)+(?=[A-Z])/, '');
  const store = span.attributes['db.system.name'];
  return typeof store === 'string' && !span.name.includes(store) ? `${store} ${span.name}` : span.name;
}

function statusOf(span: TraceSpan): string {
  const code = span.attributes['rpc.status_code'];
  if (typeof code === 'string') return code;
  return span.status === 'error' ? 'ERROR' : '';
}

function formatMs(ms: number): string {
  return ms >= 10_000 ? `${(ms / 1_000).toFixed(1)} s` : `${ms.toFixed(ms >= 100 ? 0 : ms >= 10 ? 1 : 2)} ms`;
}

function clip(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;
}
