import { writeFileSync } from 'node:fs';
import { attributeReference } from '@keytrail/telemetry';
import {
  awaitTrace,
  BackendRefused,
  BackendUnreachable,
  dialects,
  findMissingHops,
  MalformedTrace,
  printable,
  renderMissing,
  renderTrace,
  renderTraceHtml,
  reportTrace,
  type TraceLoss,
  TraceNotFound,
  type TraceTree,
} from '@keytrail/traces';
import { type Command, Option } from 'commander';
import { parseCount, parseTraceId, parseWait } from '../arguments.ts';
import { exitCodes, UsageError } from '../exit-codes.ts';
import type { Output, RunCommand, Session } from '../terminal.ts';
import { type FoundTrace, readLinked } from '../trace/linked.ts';
import { whatToTry } from '../trace/not-there.ts';
import { openSource, type SourceOptions, type TraceSource } from '../trace/source.ts';

interface TraceOptions extends SourceOptions {
  /** In milliseconds; true for the default. */
  readonly wait?: number | true;
  readonly follow?: boolean;
  readonly html?: string;
  readonly latestMiss?: boolean;
  readonly misses?: boolean;
  readonly limit: number;
}

const afterHelp = `
Without --backend and --file the backend is KEYTRAIL_TRACE_BACKEND; \`make up\` runs a local store and names it in .local/up.env.
Headers for a backend, such as Authorization or X-Scope-OrgID, are read from --headers-file or KEYTRAIL_TRACE_HEADERS,
one "Name: value" per line, and never given as an argument.
Ends with 4 when a hop that must have been is missing, or the backend says that it dropped spans of the trace, or gives only a part.`;

export function addTrace(program: Command, run: RunCommand): void {
  program
    .command('trace')
    .argument('[id]', 'trace id of 32 hex digits, or a traceparent', parseTraceId)
    .description('shows a trace as a tree of hops, and points out what is missing')
    .option('--backend <url>', 'local store, Grafana Tempo or Jaeger (KEYTRAIL_TRACE_BACKEND)')
    .addOption(new Option('--dialect <name>', 'what the backend speaks; found out when not given').choices(dialects))
    .option('--headers-file <file>', 'file with headers for the backend (or KEYTRAIL_TRACE_HEADERS)')
    .option('--file <file>', 'read OTLP/JSON, or what Tempo or Jaeger answered, from a file; - for stdin')
    .option('--wait [duration]', 'wait until the trace is whole; 10s when no duration is given', parseWait)
    .option('--follow', 'show the traces that it points to as well, such as that of the last write')
    .option('--html <file>', 'write a waterfall in one self-contained file, to attach to an incident')
    .option('--latest-miss', 'show the newest miss of the local store')
    .option('--misses', 'list the newest misses of the local store')
    .option('--limit <count>', 'with --misses: at most so many', parseCount, 20)
    .addHelpText('after', afterHelp)
    .action((id: string | undefined, options: TraceOptions) => run((session) => trace(id, options, session)));
}

async function trace(
  id: string | undefined,
  options: TraceOptions,
  { options: global, environment, output }: Session,
): Promise<number> {
  try {
    const source = await openSource(options, environment, global.timeout);
    if (options.misses) return await listMisses(source, options, output);
    const traceId = id ?? (await chooseTrace(source, options));
    return await showTrace(traceId, source, options, output);
  } catch (error) {
    const failure = describe(error, id ?? '');
    if (failure === undefined) throw error;
    output.say(`keytrail: ${failure.text}`);
    return failure.exitCode;
  }
}

async function showTrace(id: string, source: TraceSource, options: TraceOptions, output: Output): Promise<number> {
  const tree = await readTree(id, source, options.wait);
  const loss = source.lossOf(id);
  const report = reportTrace(tree, isRegistered, loss);
  const linked = await readLinked(report, source);
  if (options.html !== undefined) {
    const followed = options.follow
      ? linked.flatMap(({ tree: one, loss }) => (one ? [reportTrace(one, isRegistered, loss)] : []))
      : [];
    writeHtml(options.html, renderTraceHtml([report, ...unique(followed)]));
    output.say(`written: ${options.html}`);
  }
  if (output.json) output.out(JSON.stringify({ ...report, linked: linkedForPrograms(linked, options) }));
  else if (options.html === undefined) printTrace(tree, linked, options, output);
  const certain = report.missing.filter((hop) => hop.certain).length;
  sayLoss(loss, source, output);
  if (certain > 0)
    output.say(
      `${certain} hop${certain === 1 ? ' is' : 's are'} missing${source.grows && options.wait === undefined ? '; spans may still be on their way (--wait)' : ''}`,
    );
  else if (report.whole)
    output.say(`the trace is whole${report.missing.length > 0 ? ', but for hops that may rightly not be there' : ''}`);
  return report.whole ? exitCodes.ok : exitCodes.incomplete;
}

function sayLoss({ dropped, partial }: TraceLoss, source: TraceSource, output: Output): void {
  if (dropped > 0)
    output.say(
      `${source.name} dropped ${dropped} span${dropped === 1 ? '' : 's'} of the trace, beyond its bounds; what is missing may be among them`,
    );
  if (partial)
    output.say(
      `${source.name} gives only a part of the trace, which is longer than it gives; what is missing may be in the rest`,
    );
}

function readTree(id: string, source: TraceSource, wait: number | true | undefined): Promise<TraceTree> {
  const timeoutMs = wait === undefined || !source.grows ? 0 : wait === true ? 10_000 : wait;
  let spans = -1;
  return awaitTrace(() => source.read(id), id, {
    timeoutMs,
    pollMs: 250,
    // Whole, and no longer growing: what is still to come may be a whole branch.
    until(tree) {
      const grew = tree.spans.length !== spans;
      spans = tree.spans.length;
      return !grew && !findMissingHops(tree).some((hop) => hop.certain);
    },
  });
}

function printTrace(tree: TraceTree, linked: readonly FoundTrace[], options: TraceOptions, output: Output): void {
  const missing = findMissingHops(tree);
  const text = [renderTrace(tree, { missing, builds: true }), renderMissing(missing)];
  for (const { traceId, relation, tree: found } of uniqueLinks(linked)) {
    const what = relation === 'last_write' ? 'the last write' : 'it goes on with';
    text.push(`${what}: ${found ? summary(found) : `trace ${traceId}, which is not there (any more)`}\n`);
    if (options.follow && found) text.push(renderTrace(found, { missing: findMissingHops(found), builds: true }));
  }
  output.out(
    text
      .filter((part) => part !== '')
      .join('\n')
      .trimEnd(),
  );
}

function summary(tree: TraceTree): string {
  const root = tree.roots[0]?.span;
  const builds = [...new Set(tree.spans.map((span) => span.build).filter((build) => build !== ''))].sort();
  return printable(
    [
      `trace ${tree.id}`,
      `${root?.service} ${root?.name}`,
      new Date(tree.spans[0]?.startMs ?? 0).toISOString(),
      `${tree.spans.length} spans`,
      `build ${builds.join(', ') || 'not told'}`,
    ].join(' · '),
  );
}

function linkedForPrograms(linked: readonly FoundTrace[], { follow }: TraceOptions) {
  return linked.map(({ tree, loss, ...link }) => ({
    ...link,
    found: tree !== undefined,
    ...(follow && tree && { trace: reportTrace(tree, isRegistered, loss) }),
  }));
}

async function chooseTrace(source: TraceSource, options: TraceOptions): Promise<string> {
  if (options.latestMiss) {
    const [newest] = await source.list({ limit: 1, misses: true });
    if (newest === undefined) throw new NoMiss(`${source.name} has no trace with a miss`);
    return newest.id;
  }
  if (source.only !== undefined) return source.only;
  throw new UsageError(
    source.grows
      ? 'give a trace id, --latest-miss or --misses'
      : `${source.name} has several traces, or none: give a trace id`,
  );
}

async function listMisses(source: TraceSource, { limit }: TraceOptions, output: Output): Promise<number> {
  const misses = await source.list({ limit, misses: true });
  if (output.json) output.out(JSON.stringify({ traces: misses }));
  else
    for (const miss of misses)
      output.out(
        printable(`${miss.id}  ${new Date(miss.startMs).toISOString()}  ${miss.missCause}  ${miss.spans} spans`),
      );
  output.say(`${misses.length} miss${misses.length === 1 ? '' : 'es'}, newest first`);
  return exitCodes.ok;
}

class NoMiss extends Error {}

function describe(error: unknown, id: string): { readonly text: string; readonly exitCode: number } | undefined {
  if (error instanceof BackendUnreachable)
    return { text: `nothing answered: ${error.message}`, exitCode: exitCodes.unreachable };
  if (error instanceof TraceNotFound) return { text: whatToTry(error.traceId || id), exitCode: exitCodes.refused };
  // They may hold what a backend answered.
  if (error instanceof BackendRefused || error instanceof NoMiss || error instanceof MalformedTrace)
    return { text: printable(error.message), exitCode: exitCodes.refused };
  return undefined;
}

const registered: ReadonlySet<string> = new Set(attributeReference.map(({ name }) => name));

function isRegistered(name: string): boolean {
  return registered.has(name);
}

function unique<T extends { readonly traceId: string }>(reports: readonly T[]): T[] {
  return [...new Map(reports.map((report) => [report.traceId, report])).values()];
}

function uniqueLinks(linked: readonly FoundTrace[]): FoundTrace[] {
  return unique(linked.toSorted((a, b) => Number(b.relation === 'last_write') - Number(a.relation === 'last_write')));
}

function writeHtml(path: string, html: string): void {
  try {
    writeFileSync(path, html);
  } catch (error) {
    throw new UsageError(`the file cannot be written: ${(error as NodeJS.ErrnoException).code ?? 'unknown'}`);
  }
}
