import { timestampDate } from '@bufbuild/protobuf/wkt';
import { CheckStatus, type DescribeProcessResponse, DiagnosticsService } from '@keytrail/contracts';
import type { CheckCode, Status } from '@keytrail/diagnosis';
import { type Connections, type ServiceName, tokenSources } from '../connection.ts';
import { UsageError } from '../exit-codes.ts';
import { describeFailure } from '../failure.ts';
import { addressesOf } from './addresses.ts';
import type { Place } from './finding.ts';

/** One process, asked by itself. */
export interface Asked {
  readonly service: ServiceName;
  readonly address: string;
  /** Undefined when it did not answer. */
  readonly described?: DescribeProcessResponse;
  /** Why not, in one line. */
  readonly problem?: string;
  /** It answered, and did not take the token. */
  readonly tokenRefused?: boolean;
  /** It answered, as another service. */
  readonly mistaken?: boolean;
  /** Its clock less that of this machine, and how wrong that may be; both in ms. */
  readonly clock?: { readonly offsetMs: number; readonly withinMs: number };
}

/** A service whose processes could not even be named. */
export interface Unnamed {
  readonly service: ServiceName;
  readonly problem: string;
}

export interface Processes {
  readonly asked: readonly Asked[];
  readonly unnamed: readonly Unnamed[];
  /** Of those that answered. */
  of(services: readonly string[]): readonly Asked[];
  /** What one process says of a check; undefined when it does not have it. Never throws. */
  run(code: CheckCode, process: Asked, subjects?: readonly string[]): Promise<Place | undefined>;
}

/** Finds every process behind the targets, and asks each what it runs; all at the same time. */
export async function askProcesses(
  targets: ReadonlyMap<ServiceName, string>,
  connections: Connections,
): Promise<Processes> {
  const unnamed: Unnamed[] = [];
  const asked = await Promise.all(
    [...targets].map(async ([service, target]) => {
      try {
        const addresses = await addressesOf(target);
        return Promise.all(addresses.map((address) => describe(connections, service, address)));
      } catch (error) {
        if (error instanceof UsageError) throw error;
        unnamed.push({ service, problem: `${target} cannot be resolved (${(error as NodeJS.ErrnoException).code})` });
        return [];
      }
    }),
  );
  const all = asked.flat();
  // What stood still since it told who it is costs one timeout, not one for each check.
  const silent = new Set<Asked>();
  return {
    asked: all,
    unnamed,
    of: (services) => all.filter(({ service, described }) => described && services.includes(service)),
    async run(code, process, subjects = []) {
      if (silent.has(process)) return silentPlace(process);
      return runCheck(connections, code, process, subjects, () => silent.add(process));
    },
  };
}

/** A token that some do not take is their fault, and told of them; of one that nobody takes throws UsageError: it says nothing of the fleet. */
export function refuseUselessToken(asked: readonly Asked[]): void {
  const refusing = asked.find(({ tokenRefused }) => tokenRefused);
  if (!refusing || asked.some(({ described }) => described)) return;
  throw new UsageError(
    `the token is not taken: ${placeOf(refusing)}: ${refusing.problem}; give an operator's in ${tokenSources}`,
  );
}

export function placeOf({ service, address }: Pick<Asked, 'service' | 'address'>): string {
  return `${service} at ${address.replace(/^ipv[46]:/, '')}`;
}

function silentPlace(process: Asked): Place {
  return {
    where: placeOf(process),
    status: 'unknown',
    summary: 'it does not answer any more',
    hint: 'run the doctor again: SERVICES_REACHABLE tells whether it is back',
    follows: 'SERVICES_REACHABLE',
  };
}

async function describe(connections: Connections, service: ServiceName, address: string): Promise<Asked> {
  const client = connections.client(DiagnosticsService, service, address);
  const from = Date.now();
  try {
    const described = await client.describeProcess({});
    const until = Date.now();
    const told = described.process?.service;
    if (told !== service) return { service, address, ...mistakenFor(told, service) };
    const at = described.now ? timestampDate(described.now).getTime() : undefined;
    const clock = at === undefined ? undefined : { offsetMs: at - (from + until) / 2, withinMs: (until - from) / 2 };
    return { service, address, described, ...(clock && { clock }) };
  } catch (error) {
    if (error instanceof UsageError) throw error;
    const tokenRefused = tokenReasons.includes(describeFailure(error).reason);
    return { service, address, problem: firstLine(error), ...(tokenRefused && { tokenRefused }) };
  }
}

function mistakenFor(told: string | undefined, service: ServiceName) {
  return { problem: `it is ${told || 'something else'}, not ${service}`, mistaken: true };
}

const tokenReasons: readonly string[] = ['TOKEN_MISSING', 'TOKEN_INVALID', 'CALLER_NOT_ALLOWED'];

const statuses: Readonly<Record<CheckStatus, Status>> = {
  [CheckStatus.UNSPECIFIED]: 'unknown',
  [CheckStatus.OK]: 'ok',
  [CheckStatus.WARN]: 'warn',
  [CheckStatus.FAIL]: 'fail',
  [CheckStatus.SKIP]: 'skip',
  [CheckStatus.UNKNOWN]: 'unknown',
};

async function runCheck(
  connections: Connections,
  code: CheckCode,
  process: Asked,
  subjects: readonly string[],
  wasSilent: () => void,
): Promise<Place | undefined> {
  const where = placeOf(process);
  try {
    const client = connections.client(DiagnosticsService, process.service, process.address);
    const { results } = await client.runChecks({ codes: [code], subjects: [...subjects] });
    const result = results.find((each) => each.code === code);
    if (!result) return undefined;
    const { summary, hint, sql, durationMs, evidence } = result;
    return {
      where,
      // A status of a newer build is one that this command cannot judge.
      status: statuses[result.status] ?? 'unknown',
      summary,
      hint,
      evidence,
      subjects: result.subjects,
      durationMs,
      ...(sql && { sql }),
    };
  } catch (error) {
    const { answered } = describeFailure(error);
    if (!answered) wasSilent();
    return {
      where,
      status: 'unknown',
      summary: firstLine(error),
      hint: 'see SERVICES_REACHABLE',
      ...(!answered && { follows: 'SERVICES_REACHABLE' }),
    };
  }
}

/** Why a call failed, in one line; whom it went to is told beside it. */
function firstLine(error: unknown): string {
  const { reason, why } = describeFailure(error);
  return reason === 'DEADLINE_EXCEEDED' ? 'no answer in time: it stands still, or cannot be reached' : why;
}
