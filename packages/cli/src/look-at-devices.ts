import { type DeviceView, type ExplainKeyResponse, SessionOperatorService } from '@keytrail/contracts';
import type { Connections } from './connection.ts';
import type { Looked } from './explanation-text.ts';
import { describeFailure } from './failure.ts';
import { lookAtAll } from './looks.ts';
import { lacksEpochs, newestSessions, sessionOf } from './newest-sessions.ts';
import type { Output } from './terminal.ts';

/** How many sessions are looked at when none is named. */
const newest = 10;
/** What stays silent costs each explanation seconds: one after another they would be minutes. */
const atOnce = 5;
const storedAtMost = 50;

export interface AskedSession {
  readonly conversationId: string;
  /** Empty for that of the current epoch and those before it. */
  readonly sessionId: string;
}

interface Look extends Looked {
  readonly revoked: boolean;
}

interface Means {
  readonly connections: Connections;
  readonly output: Output;
  /** By performance.now(): no explanation is begun later, but for the first. */
  readonly until: number;
}

interface AllLooked {
  /** By device, the newest session first. */
  readonly looked: readonly Look[];
  /** How many were looked at. */
  readonly sessions: number;
  readonly isMore: boolean;
  /** Whether a session without rows would be among them. */
  readonly isGoneTold: boolean;
}

/** Each device in each session. Throws what the first explanation fails with, of which all others hang. */
export async function lookAtDevices(
  devices: readonly DeviceView[],
  { conversationId, sessionId }: AskedSession,
  { connections, output, until }: Means,
): Promise<AllLooked> {
  const client = connections.client(SessionOperatorService, 'session');
  const readers = devices.flatMap(({ device, revokedAt }) =>
    device ? [{ userId: device.userId, deviceId: device.deviceId, revoked: revokedAt !== undefined }] : [],
  );
  const [reader] = readers;
  if (!reader) return { looked: [], sessions: 0, isMore: false, isGoneTold: true };
  const ask = ({ userId, deviceId }: typeof reader, session: string) =>
    client.explainKey({ conversationId, sessionId: session, userId, deviceId });
  const first = await ask(reader, sessionId);
  const { sessions, isMore, isGoneTold } =
    sessionId === ''
      ? await sessionsToLookAt(conversationId, first, connections)
      : { sessions: [sessionOf(first, sessionId)], isMore: false, isGoneTold: true };
  const looks = readers.flatMap((each) => sessions.map((session): Look => ({ ...each, session })));
  // Where time gets short, what is the likeliest to be complained of has been looked at.
  const rank = ({ revoked, session }: Look) => (session === sessions[0] ? 0 : revoked ? 2 : 1);
  const ordered = looks
    .slice(1)
    .sort((one, other) => rank(one) - rank(other) || sessions.indexOf(one.session) - sessions.indexOf(other.session));
  if (first.notAsked.length > 0 && ordered.length > 0)
    output.say(
      `could not be asked: ${first.notAsked.join(', ')}; ${ordered.length} more to look at, for as long as --within says`,
    );
  const answers = await lookAtAll(
    ordered,
    (look) =>
      ask(look, look.session.sessionId).then(
        (explanation) => ({ explanation }),
        (error: unknown) => ({ failure: describeFailure(error) }),
      ),
    { atOnce, until },
  );
  const answerTo = new Map<Look, Partial<Looked> | undefined>(ordered.map((look, at) => [look, answers[at]]));
  const looked = looks.map(
    (look, at): Look => ({ ...look, ...(at === 0 ? { explanation: first } : answerTo.get(look)) }),
  );
  const seen = new Set(looked.flatMap(({ explanation, session }) => (explanation ? [session.sessionId] : [])));
  return { looked, sessions: seen.size, isMore, isGoneTold };
}

async function sessionsToLookAt(conversationId: string, first: ExplainKeyResponse, connections: Connections) {
  const stored = lacksEpochs(first) ? await findStored(conversationId, connections) : { sessions: [], nextToken: '' };
  // A service of an older release tells no epochs.
  const isGoneTold = stored !== undefined && first.sessionId !== '' && !first.notAsked.includes('conversation');
  const { sessions, isMore } = newestSessions(first, stored?.sessions ?? [], newest);
  return { sessions, isMore: isMore || Boolean(stored?.nextToken), isGoneTold };
}

/** Undefined when it failed: what was explained already is told all the same. */
async function findStored(conversationId: string, connections: Connections) {
  try {
    return await connections
      .client(SessionOperatorService, 'session')
      .findSessions({ conversationId, page: { size: storedAtMost } });
  } catch {
    return undefined;
  }
}
