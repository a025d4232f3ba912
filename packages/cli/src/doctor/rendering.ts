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
  const lines = findings.flatMap((finding) => {
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
  return [`STATUS   ${'CHECK'.padEnd(codeWidth)}  WHAT`, ...lines].join('\n');
}

function eachLines(places: readonly Place[], coloured: boolean): string[] {
  return places.flatMap(({ where, status, summary, hint, evidence }) => {
    const restart = evidence?.restartAdvice;
    const then = restart ? `to restart it: ${restart}` : hint && `hint: ${hint}`;
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
