import { createHash } from 'node:crypto';
import { counted, formatMs, shortMethod, symbols } from '../describe-span.ts';
import type { MissingHop } from '../expected-hops.ts';
import type { Hop, TraceReport } from '../report.ts';
import { escapeHtml } from './markup.ts';
import { script } from './script.ts';
import { deepestIndent, style } from './style.ts';

/** A page with more rows helps nobody, and browsers nest elements only so deep. */
const rowsAtMost = 5_000;
const deepestNesting = 100;

const policy = [
  "default-src 'none'",
  `style-src '${hashOf(style)}'`,
  `script-src '${hashOf(script)}'`,
  "base-uri 'none'",
  "form-action 'none'",
].join('; ');

/** The first trace, and those that it points to, as one HTML file that loads nothing and runs no script but its own. */
export function renderTraceHtml(reports: readonly TraceReport[]): string {
  const known = new Set(reports.map(({ traceId }) => traceId));
  const [first] = reports;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>Trace ${escapeHtml(first?.traceId ?? '')}</title>
<style>${style}</style>
</head>
<body>
<main>
<p id="buttons" hidden><button id="open-all" type="button">Open all</button><button id="close-all" type="button">Close all</button><span class="dim">Arrow keys move over hops; left and right close and open them.</span></p>
${reports.map((report) => traceSection(report, known)).join('\n')}
</main>
<footer class="dim"><p>${Object.entries(symbols)
    .map(([role, symbol]) => `${symbol} ${role}`)
    .join(' &nbsp; ')}</p><p>Users and devices stand here as pseudonyms only.</p></footer>
<script>${script}</script>
</body>
</html>
`;
}

function traceSection(report: TraceReport, known: ReadonlySet<string>): string {
  const rows = new Map(report.hops.map((hop) => [hop.spanId, hop]));
  const shown = report.hops.slice(0, rowsAtMost);
  const facts = [
    counted(report.spans, 'span'),
    formatMs(report.durationMs),
    counted(report.services.length, 'service'),
    report.startedAt,
  ];
  return `<section id="trace-${escapeHtml(report.traceId)}" aria-label="Trace ${escapeHtml(report.traceId)}">
<h1>Trace <code>${escapeHtml(report.traceId)}</code></h1>
<p class="dim">${facts.map(escapeHtml).join(' · ')}</p>
${report.misses.map((miss) => missLine(miss, rows)).join('\n')}
${lossLines(report)}
${missingTable(report.missing)}
${buildTable(report)}
${linkedList(report, known)}
<h2>Hops</h2>
<div class="axis"><span>service, operation</span><span class="scale">${[0, 0.25, 0.5, 0.75, 1].map((part) => `<span>${escapeHtml(formatMs(report.durationMs * part))}</span>`).join('')}</span><span class="duration">duration</span><span>status</span></div>
${hopList(shown, report)}
${report.hops.length > shown.length ? `<p class="warn">The first ${shown.length} of ${report.hops.length} hops are shown.</p>` : ''}
</section>`;
}

function missLine(
  { spanId, service, cause, recovery }: TraceReport['misses'][number],
  rows: ReadonlyMap<string, Hop>,
): string {
  const told = `MISS ${cause}${recovery === '' ? '' : ` · ${recovery}`}`;
  return `<p><span class="bad">${escapeHtml(told)}</span> found by <a href="#${escapeHtml(spanId)}">${escapeHtml(service)} ${escapeHtml(rows.get(spanId)?.operation ?? '')}</a></p>`;
}

function lossLines({ dropped, partial }: TraceReport): string {
  const told = [
    dropped > 0 &&
      `${counted(dropped, 'span')} of this trace came to the store beyond its bounds and ${dropped === 1 ? 'was' : 'were'} dropped`,
    partial && 'The backend gave only a part of this trace, which is longer than it gives',
  ];
  return told
    .filter((line) => line !== false)
    .map((line) => `<p class="gone">${escapeHtml(line)}: the trace is not whole.</p>`)
    .join('\n');
}

function missingTable(missing: readonly MissingHop[]): string {
  const certain = missing.filter((hop) => hop.certain);
  if (certain.length === 0) return '<p>No hop is missing for certain.</p>';
  const lines = certain.map((hop) => {
    const at = hop.below || hop.above[0] || '';
    return `<tr><td class="gone"><a href="#${escapeHtml(at)}">${escapeHtml(`${hop.service} ${shortMethod(hop.operation)}`)}</a></td><td class="code">${escapeHtml(hop.code)}</td><td>${hop.likely.map((why) => `<p>${escapeHtml(why)}</p>`).join('')}</td></tr>`;
  });
  return `<h2>Missing hops</h2>
<table class="missing"><thead><tr><th>hop</th><th>code</th><th>likely because</th></tr></thead><tbody>${lines.join('\n')}</tbody></table>`;
}

function buildTable({ services }: TraceReport): string {
  const lines = services.map(({ service, spans, builds }) => {
    const told =
      builds.length > 1
        ? `<span class="warn">${builds.length} builds in one trace: ${escapeHtml(builds.join(', '))}</span>`
        : escapeHtml(builds[0] ?? 'not told');
    return `<tr><td>${escapeHtml(service)}</td><td>${counted(spans, 'span')}</td><td>${told}</td></tr>`;
  });
  return `<h2>Builds</h2><table><thead><tr><th>service</th><th>spans</th><th>build</th></tr></thead><tbody>${lines.join('')}</tbody></table>`;
}

function linkedList({ linked }: TraceReport, known: ReadonlySet<string>): string {
  if (linked.length === 0) return '';
  const lines = linked.map(({ traceId, relation }) => {
    const id = `<code>${escapeHtml(traceId)}</code>`;
    const told = known.has(traceId) ? `<a href="#trace-${escapeHtml(traceId)}">${id}</a>` : id;
    return `<li>${relation === 'last_write' ? 'the last write: trace' : 'goes on with trace'} ${told}</li>`;
  });
  return `<h2>Points to</h2><ul>${lines.join('')}</ul>`;
}

/** Rows come each before its children: an element stays open as long as what follows is deeper. */
function hopList(hops: readonly Hop[], report: TraceReport): string {
  const below = Map.groupBy(report.missing, (hop) => hop.below);
  const above = new Map(report.missing.flatMap((hop) => hop.above.map((spanId) => [spanId, hop])));
  const parts: string[] = ['<ul class="hops">'];
  let open = 0;
  hops.forEach((hop, at) => {
    const depth = Math.min(hop.depth, deepestNesting);
    for (; open > depth; open -= 1) parts.push('</ul></details></li>');
    const next = Math.min(hops[at + 1]?.depth ?? 0, deepestNesting);
    const notes = notesOf(hop, below.get(hop.spanId) ?? [], above.get(hop.spanId), report);
    parts.push(
      `<li class="hop" id="${escapeHtml(hop.spanId)}"><details${next > depth ? ' open' : ''}>${rowOf(hop, report, notes)}${factsOf(hop)}`,
    );
    if (next > depth) {
      parts.push('<ul>');
      open += 1;
    } else parts.push('</details></li>');
  });
  for (; open > 0; open -= 1) parts.push('</ul></details></li>');
  parts.push('</ul>');
  return parts.join('\n');
}

function rowOf(hop: Hop, { durationMs }: TraceReport, notes: readonly string[]): string {
  const failed = hop.error !== '' || hop.status === 'ERROR' ? ' failed' : '';
  const missed = hop.cause === '' ? '' : ' miss';
  const symbol = symbols[hop.kind];
  const depth = Math.min(hop.depth, deepestIndent);
  return `<summary class="row ${hop.kind}${failed}${missed} d${depth}"><span class="name"><span class="service">${escapeHtml(hop.service)}</span> <span aria-hidden="true">${symbol}</span><span class="offscreen"> ${hop.kind} </span> ${escapeHtml(hop.operation)}</span>${barOf(hop, durationMs)}<span class="duration">${escapeHtml(formatMs(hop.durationMs))}</span><span class="status">${escapeHtml(hop.status)}</span>${notes.join('')}</summary>`;
}

/** The bar's place is an attribute of SVG, as the policy of the page lets no element bring a style of its own. */
function barOf({ startMs, durationMs }: Hop, wholeMs: number): string {
  const scale = wholeMs > 0 ? 1_000 / wholeMs : 0;
  const width = Math.min(1_000, Math.max(2, durationMs * scale));
  const x = Math.min(Math.max(0, startMs * scale), 1_000 - width);
  return `<svg class="bar" viewBox="0 0 1000 12" preserveAspectRatio="none" aria-hidden="true"><rect x="${x.toFixed(1)}" y="2" width="${width.toFixed(1)}" height="8"/></svg>`;
}

function notesOf(
  hop: Hop,
  below: readonly MissingHop[],
  above: MissingHop | undefined,
  { mixedBuilds }: TraceReport,
): string[] {
  const notes: string[] = [];
  const note = (kind: string, text: string) => notes.push(`<span class="note ${kind}">${escapeHtml(text)}</span>`);
  if (above) note(above.certain ? 'gone' : 'dim', missingText(above, 'above'));
  if (hop.cause !== '') note('bad', `✗ MISS ${hop.cause}${hop.recovery === '' ? '' : ` · ${hop.recovery}`}`);
  if (hop.reason !== '') note('warn', `✗ ${hop.reason}`);
  if (hop.error !== '') note('bad', `! ${hop.error}`);
  if (mixedBuilds.includes(hop.service)) note('warn', `build ${hop.build}`);
  for (const missing of below) note(missing.certain ? 'gone' : 'dim', missingText(missing, 'below'));
  return notes;
}

function missingText(hop: MissingHop, where: 'above' | 'below'): string {
  return `${hop.certain ? '✗ MISSING' : '? none'} ${where}: ${hop.service} ${shortMethod(hop.operation)}`;
}

function factsOf(hop: Hop): string {
  const facts: [string, string][] = [
    ['span', hop.spanId],
    ['parent', hop.parentSpanId || '-'],
    ['starts after', formatMs(hop.startMs)],
    ['instance', hop.instance || '-'],
    ['build', hop.build || 'not told'],
    ...Object.entries(hop.attributes).map(([name, value]): [string, string] => [
      name,
      typeof value === 'string' ? value : JSON.stringify(value),
    ]),
    ...hop.links.map(({ traceId, spanId }): [string, string] => ['link', `trace ${traceId}, span ${spanId}`]),
  ];
  const lines = facts.map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd>`).join('');
  return `<details class="facts"><summary>facts</summary><dl>${lines}</dl></details>`;
}

function hashOf(text: string): string {
  return `sha256-${createHash('sha256').update(text).digest('base64')}`;
}
