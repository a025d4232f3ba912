import type { EpochOfSession, ExplainKeyResponse, SessionView } from '@keytrail/contracts';

export interface LookedSession {
  readonly sessionId: string;
  /** 0n when it is not known. */
  readonly epoch: bigint;
}

/** The session that an explanation is about. A service of an older release does not say it of a session without a row: then `asked`, if any was. */
export function sessionOf(explanation: ExplainKeyResponse, asked = ''): LookedSession {
  const { sessionId, epoch, session, currentSessionId, currentEpoch } = explanation;
  const looked = sessionId || session?.sessionId || asked || currentSessionId;
  return { sessionId: looked, epoch: epoch || session?.epoch || (looked === currentSessionId ? currentEpoch : 0n) };
}

/** Whether conversation has an epoch without a row, as far as an explanation tells its epochs. The sessions of such can be found by their own rows alone. */
export function lacksEpochs({ newestEpochs, currentEpoch }: ExplainKeyResponse): boolean {
  const [newest] = newestEpochs;
  if (!newest || currentEpoch === 0n) return true;
  const first = isToldWhole(newestEpochs) ? 1n : (newestEpochs.at(-1)?.epoch ?? 1n);
  return newest.epoch - first + 1n !== BigInt(newestEpochs.length);
}

/**
 * The newest sessions, newest first, that of `current` at the top: those of the conversation's epochs, whether or not session has rows of them, and of
 * `stored` those whose epoch has no row. Without epochs all that are stored. Left out are candidates that lost: no message was ever under one.
 */
export function newestSessions(
  current: ExplainKeyResponse,
  stored: readonly SessionView[],
  most: number,
): { readonly sessions: readonly LookedSession[]; readonly isMore: boolean } {
  const { newestEpochs: epochs, currentEpoch } = current;
  const isWhole = isToldWhole(epochs);
  const [newest, oldest] = [epochs[0]?.epoch ?? 0n, epochs.at(-1)?.epoch ?? 0n];
  const known = new Set(epochs.flatMap(({ epoch, sessionId }) => [String(epoch), sessionId]));
  const isLost = ({ epoch, sessionId }: SessionView) =>
    !known.has(String(epoch)) &&
    !known.has(sessionId) &&
    (epoch < newest || currentEpoch === 0n) &&
    (epoch > oldest || isWhole);
  const kept = stored.filter((session) => !session.discardedAt && (epochs.length === 0 || isLost(session)));
  const top = sessionOf(current);
  const others = [...epochs, ...kept]
    .filter(({ sessionId }) => sessionId !== top.sessionId)
    .map(({ sessionId, epoch }) => ({ sessionId, epoch }))
    .sort((one, other) => Number(other.epoch - one.epoch));
  return { sessions: [top, ...others.slice(0, most - 1)], isMore: others.length >= most || !isWhole };
}

const epochsTold = 20;

const isToldWhole = (epochs: readonly EpochOfSession[]) => epochs.length < epochsTold || epochs.at(-1)?.epoch === 1n;
