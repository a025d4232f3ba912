import { timestampDate } from '@bufbuild/protobuf/wkt';
import { nobodyTold, type Place } from '../finding.ts';
import type { Asked } from '../processes.ts';

interface Build {
  readonly build: string;
  readonly service: string;
  readonly sources: string;
  /** Empty when the process does not tell. */
  readonly contract: string;
}

/** Every build that runs, as far as it is known: of processes that answered, and of peers that those met. */
function builds(asked: readonly Asked[]): Build[] {
  return asked.flatMap(({ service, described }) =>
    described?.process
      ? [
          {
            build: described.process.writerBuild,
            service,
            sources: described.process.sourcesDigest,
            contract: described.process.contractDigest,
          },
        ]
      : [],
  );
}

const peerIsFreshMs = 10 * 60_000;

/** Of a service; of one that nobody was asked of since ever. */
function lastStartOf(service: string, asked: readonly Asked[]): number {
  const starts = asked.flatMap(({ described }) =>
    described?.process?.service === service && described.process.startedAt
      ? [timestampDate(described.process.startedAt).getTime()]
      : [],
  );
  return Math.max(Number.NEGATIVE_INFINITY, ...starts);
}

/** Peers that were met lately. One that answered before the last start of its service is what that start replaced. */
function freshPeers(asked: readonly Asked[]) {
  return asked.flatMap(({ described }) =>
    (described?.peers ?? []).flatMap(({ seenAt, ...peer }) => {
      if (!described?.now || !seenAt) return [];
      const seenMs = timestampDate(seenAt).getTime();
      const fresh = timestampDate(described.now).getTime() - seenMs < peerIsFreshMs;
      return fresh && seenMs > lastStartOf(peer.service, asked) ? [{ ...peer, seenMs }] : [];
    }),
  );
}

function byValue(pairs: readonly (readonly [value: string, service: string])[]): Map<string, string[]> {
  const grouped = new Map<string, string[]>();
  for (const [value, service] of pairs) grouped.set(value, [...(grouped.get(value) ?? []), service].sort());
  return grouped;
}

function tellGroups(groups: ReadonlyMap<string, readonly string[]>): string {
  const count = (services: readonly string[]) =>
    [...new Set(services)].map((service) => {
      const times = services.filter((each) => each === service).length;
      return times > 1 ? `${times} ${service}` : service;
    });
  return [...groups].map(([value, services]) => `${value.slice(0, 24)} (${count(services).join(', ')})`).join('; ');
}

/** FLEET_MIXED. */
export function judgeMixed(asked: readonly Asked[]): Omit<Place, 'where'> {
  const running = builds(asked);
  if (running.length === 0) return nobodyTold('build');
  const direct = byValue(running.map(({ build, service }) => [build, service]));
  const strange = freshPeers(asked)
    .filter(({ writerBuild }) => writerBuild && !direct.has(writerBuild))
    .sort((a, b) => b.seenMs - a.seenMs);
  const hint =
    'during a roll-out this passes; otherwise a process was not replaced, or the wrong one was rolled back: see BUILD_RUNNING for when each started';
  if (direct.size > 1)
    return {
      status: 'warn',
      summary: `${direct.size} builds run: ${tellGroups(direct)}`,
      evidence: { builds: direct.size },
      hint,
    };
  if (strange[0])
    return {
      status: 'warn',
      summary: `a process that the doctor does not see answered with another build until ${new Date(strange[0].seenMs).toISOString()}: ${strange[0].service} ${strange[0].writerBuild}`,
      evidence: { builds: 2 },
      hint: `${hint}. The targets that were given do not name it: it is gone when that time stays as it is`,
    };
  // Two trees may say the same revision: one of them was edited.
  for (const [service, some] of Map.groupBy(running, (each) => each.service))
    if (new Set(some.map(({ sources }) => sources)).size > 1)
      return {
        status: 'warn',
        summary: `processes of ${service} say the same build, and were loaded from different sources`,
        evidence: { builds: direct.size },
        hint: 'the tree was edited between their starts: restart those that started before, or put the tree right',
      };
  const silent = asked.filter(({ described }) => !described).length;
  const [build = ''] = direct.keys();
  if (silent > 0)
    return {
      status: 'unknown',
      summary: `${running.length} processes run ${build}; ${silent} did not answer`,
      hint: 'see SERVICES_REACHABLE',
    };
  return { status: 'ok', summary: `all ${running.length} processes run ${build}`, evidence: { build } };
}

/** CONTRACTS_AGREE. */
export function judgeContracts(asked: readonly Asked[]): Omit<Place, 'where'> {
  const running = builds(asked);
  const telling = running.filter(({ contract }) => contract !== '');
  if (running.length === 0) return nobodyTold('contract');
  if (telling.length === 0)
    return {
      status: 'unknown',
      summary: 'no process told its contract',
      hint: 'older builds run: see FLEET_MIXED',
    };
  const groups = byValue([
    ...telling.map(({ contract, service }) => [contract, service] as const),
    ...freshPeers(asked)
      .filter(({ contractDigest }) => contractDigest && !telling.some(({ contract }) => contract === contractDigest))
      .map(({ contractDigest, service }) => [contractDigest, service] as const),
  ]);
  if (groups.size > 1)
    return {
      status: 'warn',
      summary: `${groups.size} contracts are served: ${tellGroups(groups)}`,
      evidence: { contracts: groups.size },
      hint: 'contracts only grow, so they work together; what the newer one has, the older one does not know: finish the roll-out',
    };
  const silent = asked.length - telling.length;
  const [contract = ''] = groups.keys();
  if (silent > 0)
    return {
      status: 'unknown',
      summary: `${telling.length} processes have one contract; ${silent} did not tell`,
      hint: 'see SERVICES_REACHABLE',
    };
  return {
    status: 'ok',
    summary: `all ${telling.length} processes have contract ${contract.slice(0, 12)}`,
    evidence: { contract },
  };
}
