import { contractDigest } from '@keytrail/contracts/digest';

/** A build that answered a call of this process. */
export interface PeerBuildSeen {
  readonly peer: string;
  readonly build: string;
  /** Empty from a build that tells none. */
  readonly contract: string;
  /** When it answered last. */
  readonly seenAt: Date;
  /** Whether it has other contracts than this process; undefined when it tells none. */
  readonly otherContract: boolean | undefined;
}

interface Seen {
  readonly build: string;
  readonly contract: string;
  seenMs: number;
}

/** Of each peer the builds that answered, the last one first. */
const seen = new Map<string, Seen[]>();
const listeners = new Set<(first: PeerBuildSeen) => void>();

const rememberedMs = 10 * 60_000;
const buildsPerPeer = 16;

/** Notes which build answered. Nearly always it is the one that answered last, so that this costs next to nothing. */
export function notePeerBuild(peer: string, build: string, contract: string): void {
  const builds = seen.get(peer);
  const last = builds?.[0];
  if (last !== undefined && last.build === build && last.contract === contract) {
    last.seenMs = Date.now();
    return;
  }
  noteChange(peer, builds ?? [], build, contract);
}

function noteChange(peer: string, builds: Seen[], build: string, contract: string): void {
  const now = Date.now();
  const known = builds.find((each) => each.build === build && each.contract === contract);
  const newest = known ?? { build, contract, seenMs: now };
  newest.seenMs = now;
  const others = builds.filter((each) => each !== newest && each.seenMs > now - rememberedMs);
  seen.set(peer, [newest, ...others].slice(0, buildsPerPeer));
  if (known === undefined) for (const listener of listeners) listener(describe(peer, newest));
}

/** The builds that answered this process within the last ten minutes. */
export function peerBuildsSeen(): PeerBuildSeen[] {
  const since = Date.now() - rememberedMs;
  return [...seen].flatMap(([peer, builds]) =>
    builds.filter(({ seenMs }) => seenMs > since).map((each) => describe(peer, each)),
  );
}

/** Calls back for each build that answered already, and for each that answers for the first time; returns how to stop that. */
export function onPeerBuild(run: (first: PeerBuildSeen) => void): () => void {
  for (const each of peerBuildsSeen()) run(each);
  listeners.add(run);
  return () => listeners.delete(run);
}

function describe(peer: string, { build, contract, seenMs }: Seen): PeerBuildSeen {
  const otherContract = contract === '' ? undefined : contract !== contractDigest();
  return { peer, build, contract, seenAt: new Date(seenMs), otherContract };
}
