import type { CheckCode, Status } from '@keytrail/diagnosis';
import { type Finding, type Place, worstOf } from './finding.ts';

const colours: Readonly<Record<Status, number>> = { ok: 32, warn: 33, fail: 31, skip: 90, unknown: 35 };

/** `status`, coloured where it is shown on a terminal. */
export function statusText(status: Status, coloured: boolean, width = 0): string {
  const text = status.padEnd(width);
  return coloured ? `\u001B[${colours[status]}m${text}\u001B[0m` : text;
}

/** What each process says of itself is the answer, also where nothing is wrong. */
const toldOfEach: ReadonlySet<CheckCode> = new Set(['BUILD_RUNNING']);

/** One line for each check; below those that are not ok what was seen where, what to do, and where to read on. */
export function findingsTable(
  findings: readonly Finding[],
  { coloured = false, sql = 'none' }: { coloured?: boolean; sql?: 'none' | 'direct' | 'all' } = {},
): string {
  const codeWidth = Math.max(5, ...findings.map(({ code }) => code.length));
  const indent = ' '.repeat(9);
  const { told, following } = withoutFollowing(findings);
  const because = Map.groupBy(following, causeOf);
  const lines = told.flatMap((finding) => {
    const { status, code, summary, hint, page, places, step } = finding;
    const head = `${statusText(status, coloured, 7)}  ${code.padEnd(codeWidth)}  ${summary}${step ? ` [step ${step}]` : ''}`;
    const queries = sqlOf(places, sql).flatMap((text) => ['sql:', ...text.split('\n').map((line) => `  ${line}`)]);
    if (toldOfEach.has(code))
      return [
        head,
        ...[...eachLines(places, coloured), ...(status === 'ok' ? [] : [`page: ${page}`])].map((line) => indent + line),
      ];
    if (status === 'ok' || status === 'skip')
      return [
        head,
        ...(status === 'skip' && hint ? [`${indent}hint: ${hint}`] : []),
        ...queries.map((line) => indent + line),
      ];
    const wrong = places.filter((place) => place.status !== 'ok' && place.status !== 'skip');
    // One place alone is told by the line above.
    const seen = wrong.flatMap((place) => [
      ...(wrong.length > 1 ? [`${place.where}: ${statusText(place.status, coloured)}: ${place.summary}`] : []),
      ...evidenceLines(place),
    ]);
    return [
      head,
      ...[...seen, ...(hint ? [`hint: ${hint}`] : []), `page: ${page}`, ...queries].map((line) => indent + line),
    ];
  });
  for (const [cause, some] of because) {
    const why =
      cause === 'SERVICES_REACHABLE'
        ? 'could not be asked of processes that do not answer, or have no target'
        : 'could not be made without what they ask';
    const elsewhere = some.some(({ places }) => places.some(({ hint }) => hint?.includes('--database-url')));
    lines.push(
      `${statusText('unknown', coloured, 7)}  ${`${some.length} checks`.padEnd(codeWidth)}  ${why}: see ${cause}`,
      ...listed(some.map(({ code }) => code)).map((line) => `${indent}${line}`),
      ...(elsewhere
        ? [`${indent}hint: with --database-url the doctor reads the rows of such a service by itself`]
        : []),
    );
  }
  return [`STATUS   ${'CHECK'.padEnd(codeWidth)}  WHAT`, ...lines].join('\n');
}

/** Apart: what is unknown only because of what another finding says. The same words below each of them would bury the rest. */
function withoutFollowing(findings: readonly Finding[]): { told: readonly Finding[]; following: readonly Finding[] } {
  const causes = findings.filter(({ status }) => status !== 'ok').map(({ code }) => code);
  const all = findings.filter((finding) => causes.some((code) => code === causeOf(finding)));
  const following = all.filter((finding) => all.filter((each) => causeOf(each) === causeOf(finding)).length > 1);
  return { told: findings.filter((finding) => !following.includes(finding)), following };
}

/** The one finding that a finding only follows from, if any; the last one that its places name where there are several. */
function causeOf({ code, status, places }: Finding): CheckCode | undefined {
  if (status !== 'unknown' || toldOfEach.has(code)) return undefined;
  const wrong = places.filter((place) => place.status !== 'ok' && place.status !== 'skip');
  return wrong.every(({ follows }) => follows) ? wrong.at(-1)?.follows : undefined;
}

/** Five in a line. */
function listed(codes: readonly string[]): string[] {
  return codes.flatMap((_, at) => (at % 5 === 0 ? [codes.slice(at, at + 5).join(', ')] : []));
}

function eachLines(places: readonly Place[], coloured: boolean): string[] {
  return places.flatMap(({ where, status, summary, hint, evidence, follows }) => {
    const restart = evidence?.restartAdvice;
    const then = restart ? `to restart it: ${restart}` : !follows && hint && `hint: ${hint}`;
    return [`${where}: ${statusText(status, coloured)}: ${summary}`, ...(then ? [`  ${then}`] : [])];
  });
}

function evidenceLines({ evidence = {} }: Place): string[] {
  const facts = Object.entries(evidence);
  return facts.length === 0 ? [] : [`  ${facts.map(([name, value]) => `${name}=${value}`).join('  ')}`];
}

function sqlOf(places: readonly Place[], which: 'none' | 'direct' | 'all'): string[] {
  if (which === 'none') return [];
  const shown = places.filter(({ where }) => which === 'all' || where.startsWith('database of '));
  return [...new Set(shown.flatMap(({ sql }) => (sql ? [sql] : [])))];
}

/** How many ended how: `27 ok, 1 warn`. */
export function countStatuses(findings: readonly Finding[]): string {
  const statuses: readonly Status[] = ['ok', 'warn', 'fail', 'unknown', 'skip'];
  return statuses
    .map((status) => ({ status, count: findings.filter((finding) => finding.status === status).length }))
    .filter(({ count }) => count > 0)
    .map(({ status, count }) => `${count} ${status}`)
    .join(', ');
}

/** For scripts; documented in docs/checks/README.md. `exitCode`: what the command ends with. */
export function findingsJson(findings: readonly Finding[], exitCode: number): string {
  const report = {
    status: worstOf(findings.map(({ status }) => status)),
    exitCode,
    checks: findings,
  };
  return JSON.stringify(report, (_, value) => (typeof value === 'bigint' ? String(value) : value));
}
