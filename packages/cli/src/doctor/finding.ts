import { type CheckCode, checkCatalogue, checkPage, type Outcome, type Status } from '@keytrail/diagnosis';

/** What one place says of a check: a process, a service's database, or the doctor itself. */
export interface Place extends Outcome {
  /** `session at 127.0.0.1:50051`, `database of session`, `doctor`. */
  readonly where: string;
  readonly sql?: string;
  readonly durationMs?: number;
  /** The check that says why this one could not be asked here, and what to do. */
  readonly follows?: CheckCode;
}

/** Of what processes tell of themselves, while none answers. */
export function nobodyTold(what: string): Omit<Place, 'where'> {
  return {
    status: 'unknown',
    follows: 'SERVICES_REACHABLE',
    summary: `no process told its ${what}`,
    hint: 'see SERVICES_REACHABLE',
  };
}

/** One check, over all places that it was run at. */
export interface Finding {
  readonly code: CheckCode;
  readonly title: string;
  /** Of the eight steps of the incident's diagnosis. */
  readonly step?: number;
  readonly status: Status;
  readonly summary: string;
  readonly hint: string;
  readonly page: string;
  readonly places: readonly Place[];
}

/** From the worst on. What is not known may be anything, so it is worse than a warning. */
const severity: readonly Status[] = ['fail', 'unknown', 'warn', 'ok', 'skip'];

/** The worst of them; skip of none. */
export function worstOf(statuses: readonly Status[]): Status {
  return severity.find((status) => statuses.includes(status)) ?? 'skip';
}

/** Puts together what all places say: the worst of it, and of how many. A check that nobody answered is unknown. */
export function mergePlaces(code: CheckCode, places: readonly Place[]): Finding {
  const entry = checkCatalogue.find((each) => each.code === code);
  const told = {
    code,
    title: entry?.title ?? code,
    page: checkPage(code),
    ...(entry && 'step' in entry && { step: entry.step }),
  };
  if (places.length === 0)
    return {
      ...told,
      status: 'unknown',
      summary: 'nobody could be asked',
      hint: 'no process answers that has this check: see SERVICES_REACHABLE; with --database-url the doctor looks itself',
      places,
    };
  const status = worstOf(places.map((place) => place.status));
  const so = places.filter((place) => place.status === status);
  const first = so[0] as Place;
  const others = so.length > 1 ? `, and ${so.length - 1} more` : '';
  const summary =
    places.length === 1 || (new Set(so.map((place) => place.summary)).size === 1 && so.length === places.length)
      ? first.summary
      : status === 'ok'
        ? `${first.where}: ${first.summary}${others}`
        : `${first.where}${others}: ${first.summary}`;
  return { ...told, status, summary, hint: so.find(({ hint }) => hint)?.hint ?? '', places };
}

/** What the command ends with, and why. Codes 2 and 3 have their usual meaning. */
export const doctorExitCodes = { ok: 0, fail: 1, warn: 4, unknown: 5 } as const;

export function exitCodeOf(findings: readonly Finding[]): number {
  const worst = worstOf(findings.map(({ status }) => status));
  return worst === 'skip' ? doctorExitCodes.ok : doctorExitCodes[worst];
}
