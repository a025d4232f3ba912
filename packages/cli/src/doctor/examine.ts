import { type CheckCode, checkCatalogue } from '@keytrail/diagnosis';
import { type ServiceName, serviceNames, targetOf } from '../connection.ts';
import type { Session } from '../terminal.ts';
import { type Databases, openDatabases } from './databases.ts';
import { type Finding, mergePlaces, type Place } from './finding.ts';
import { judgeContracts, judgeMixed } from './fleet/builds.ts';
import { judgeClocks } from './fleet/clocks.ts';
import { judgeReachable } from './fleet/reachable.ts';
import { judgeOldWriters } from './fleet/writers.ts';
import { followingStores, wayBarred } from './following.ts';
import { type Asked, askProcesses, type Processes, placeOf, refuseUselessToken } from './processes.ts';
import { reproduce } from './reproduction.ts';
import { lookForTraces } from './trace-arrivals.ts';

export interface Examination {
  /** Codes to run. */
  readonly codes: ReadonlySet<CheckCode>;
  /** Read the databases even where a service answers. */
  readonly direct: boolean;
  readonly databaseUrls: ReadonlyMap<ServiceName, string>;
  /** Called after each check, in the order of the catalogue. */
  readonly told: (finding: Finding) => void;
}

export interface Examined {
  readonly findings: readonly Finding[];
  /** False when nothing answered at all, no process and no database. */
  readonly reached: boolean;
}

interface Parts {
  readonly session: Session;
  readonly processes: Processes;
  readonly databases: Databases;
  readonly direct: boolean;
}

/** Whether anything was given that could be asked. */
export function targetsOf(session: Session): Map<ServiceName, string> {
  const { options, environment } = session;
  return new Map(
    serviceNames.flatMap((service) => {
      const target = targetOf(service, options, environment);
      return target ? [[service, target] as const] : [];
    }),
  );
}

/** Runs the checks once, cheapest first. What hangs costs the timeout of a call, once for each process. */
export async function examine(session: Session, examination: Examination): Promise<Examined> {
  const databases = openDatabases(examination.databaseUrls);
  try {
    const processes = await askProcesses(targetsOf(session), session.connections);
    // Databases are read without a token.
    if (examination.databaseUrls.size === 0) refuseUselessToken(processes.asked);
    const parts: Parts = { session, processes, databases, direct: examination.direct };
    const findings: Finding[] = [];
    for (const { code } of checkCatalogue) {
      if (!examination.codes.has(code)) continue;
      const places = (code === 'REPRODUCTION' && wayBarred(findings)) || (await placesOf(code, parts));
      const finding = mergePlaces(code, followingStores(code, [places].flat(), findings));
      findings.push(finding);
      examination.told(finding);
    }
    const reached =
      databases.answered() || processes.asked.some(({ described, tokenRefused }) => described || tokenRefused);
    return { findings, reached };
  } finally {
    await databases.close();
  }
}

async function placesOf(code: CheckCode, parts: Parts): Promise<Place[]> {
  const entry = checkCatalogue.find((each) => each.code === code) as (typeof checkCatalogue)[number];
  const services: readonly ServiceName[] = entry.of;
  switch (entry.place) {
    case 'process': {
      const asked = await Promise.all(services.map((service) => everyProcess(code, service, parts)));
      const places = asked.flat();
      if (code === 'TELEMETRY') return lookForTraces(places, parts.session);
      return code === 'CLOCKS' ? [...places, { where: 'fleet', ...judgeClocks(parts.processes.asked) }] : places;
    }
    case 'service':
      return Promise.all(services.map((service) => once(code, service, parts)));
    case 'any':
      return [await anyProcess(code, services, parts)];
    case 'fleet':
      return fleetPlaces(code, parts);
  }
}

/** All of a service's processes, each by itself; those that do not answer are unknown. */
async function everyProcess(code: CheckCode, service: ServiceName, parts: Parts): Promise<Place[]> {
  const { processes, databases, direct } = parts;
  const mine = processes.asked.filter((each) => each.service === service);
  const hint = elsewhere(code, service, databases);
  const asked = await Promise.all(
    mine.map((process) => (process.described ? processes.run(code, process) : silent(process, hint))),
  );
  const places = asked.map((place, number): Place => place ?? lacksCheck(mine[number] as Asked));
  if ((direct || !mine.some(({ described }) => described)) && databases.has(service)) {
    const own = await databases.run(code, service);
    // The database tells the same of all of them.
    if (own) return [own, ...places.filter(({ status }) => status !== 'unknown')];
  }
  return mine.length > 0 ? places : [{ where: service, ...notNamed }];
}

const notNamed = {
  status: 'unknown',
  follows: 'SERVICES_REACHABLE',
  summary: 'no process of it is known',
  hint: 'give its target; see SERVICES_REACHABLE',
} as const;

/** Where else it could be looked at: what is in a database, while that was not named. */
function elsewhere(code: CheckCode, service: ServiceName, databases: Databases): string {
  const more = databases.couldTell(code, service) && !databases.has(service);
  return `see SERVICES_REACHABLE${more ? '; with --database-url the doctor reads its rows by itself' : ''}`;
}

function silent(process: Asked, hint: string): Place {
  return {
    where: placeOf(process),
    status: 'unknown',
    follows: 'SERVICES_REACHABLE',
    summary: process.tokenRefused ? 'it does not take the token' : 'it does not answer',
    hint,
  };
}

function lacksCheck(process: Asked): Place {
  return {
    where: placeOf(process),
    status: 'unknown',
    summary: 'its build does not have this check',
    hint: 'an older build runs: see FLEET_MIXED',
  };
}

/** By the first process of a service that can tell, or by the doctor in its database. */
async function once(
  code: CheckCode,
  service: ServiceName,
  parts: Parts,
  subjects: readonly string[] = [],
): Promise<Place> {
  const { processes, databases, direct } = parts;
  let last: Place | undefined;
  if (!(direct && databases.has(service)))
    for (const process of processes.of([service])) {
      const place = (await processes.run(code, process, subjects)) ?? lacksCheck(process);
      if (place.status !== 'unknown') return { ...place, where: service };
      last = place;
    }
  const own = await databases.run(code, service, subjects);
  if (own && (own.status !== 'unknown' || !last)) return own;
  const mine = processes.asked.filter((each) => each.service === service);
  const nobody = mine.every(({ tokenRefused }) => tokenRefused) ? noneTakesToken : noAnswer;
  const hint = elsewhere(code, service, databases);
  return last ?? { where: service, ...(mine.length > 0 ? { ...nobody, hint } : notNamed) };
}

const noAnswer = {
  status: 'unknown',
  follows: 'SERVICES_REACHABLE',
  summary: 'none of its processes answers',
  hint: 'see SERVICES_REACHABLE',
} as const;

const noneTakesToken = { ...noAnswer, summary: 'none of its processes takes the token' };

async function anyProcess(code: CheckCode, services: readonly ServiceName[], { processes }: Parts): Promise<Place> {
  let last: Place | undefined;
  for (const process of processes.of(services)) {
    const place = await processes.run(code, process);
    if (place && place.status !== 'unknown') return place;
    last ??= place;
  }
  return last ?? { where: 'fleet', ...noAnswer };
}

async function fleetPlaces(code: CheckCode, parts: Parts): Promise<Place[]> {
  const { processes, session } = parts;
  const { asked, unnamed } = processes;
  const where = 'fleet';
  switch (code) {
    case 'SERVICES_REACHABLE': {
      const targets = targetsOf(session);
      return judgeReachable(
        asked,
        unnamed,
        serviceNames.filter((service) => !targets.has(service)),
        session.environment.KEYTRAIL_PROCESS_ADVICE,
      );
    }
    case 'FLEET_MIXED':
      return [{ where, ...judgeMixed(asked) }];
    case 'CONTRACTS_AGREE':
      return [{ where, ...judgeContracts(asked) }];
    case 'OLD_BUILD_WRITES':
      return Promise.all(
        (['identity-keys', 'session', 'conversation'] as const).map(async (service): Promise<Place> => {
          const told = await once(code, service, parts);
          if (told.status !== 'ok') return told;
          const mine = asked.filter((process) => process.service === service);
          return { ...told, ...judgeOldWriters(told.subjects ?? [], mine) };
        }),
      );
    case 'CONVERSATION_SESSIONS': {
      const named = await once(code, 'conversation', parts);
      if (named.status === 'unknown') return [named];
      return [named, await once(code, 'session', parts, named.subjects ?? [])];
    }
    case 'REPRODUCTION':
      return [await reproduce(session)];
    default:
      throw new Error(`nobody judges ${code}`);
  }
}
