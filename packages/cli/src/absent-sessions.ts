import { ConversationOperatorService, type DescribeConversationResponse, type SessionView } from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc';
import { targetOf, targetVariable } from './connection.ts';
import { exitCodes } from './exit-codes.ts';
import { describeFailure } from './failure.ts';
import { time } from './rendering.ts';
import type { Session } from './terminal.ts';

interface Asked {
  readonly conversationId: string;
  /** One of them; '' for all. */
  readonly sessionId: string;
}

/** What session listed of them. */
export interface Listed {
  readonly sessions: readonly SessionView[];
  /** Whether there are older ones that were not listed. */
  readonly isMore: boolean;
}

/** What conversation knows of the sessions that there should be; undefined without a target. */
export type Expected =
  | { readonly known: DescribeConversationResponse | undefined }
  | { readonly failure: unknown }
  | undefined;

interface Judgement {
  readonly exitCode: number;
  readonly words: string;
}

const epochsAtMost = 200;
const toldAtMost = 5;

/** To be asked before session is: whatever is an epoch by then has been stored before. */
export async function expectSessions({ conversationId, sessionId }: Asked, session: Session): Promise<Expected> {
  const { connections, options, environment } = session;
  if (!targetOf('conversation', options, environment)) return undefined;
  const epochsMax = sessionId === '' ? epochsAtMost : 1;
  try {
    const client = connections.client(ConversationOperatorService, 'conversation');
    return { known: await client.describeConversation({ conversationId, sessionId, epochsMax }) };
  } catch (failure) {
    return readRefusal(failure).reason === 'NOT_FOUND_OR_NOT_PERMITTED' ? { known: undefined } : { failure };
  }
}

/**
 * Says which sessions are not stored that should be: rows that are gone look like ids that never were, and conversation tells them apart. Returns
 * the exit code. Throws what conversation failed with where there is nothing else to tell.
 */
export function judgeAbsence(asked: Asked, listed: Listed, expected: Expected, { output }: Session): number {
  const { conversationId, sessionId } = asked;
  const stored = listed.sessions.filter(({ discardedAt }) => !discardedAt);
  if (sessionId !== '' && stored.length > 0) return exitCodes.ok;
  if (!expected) {
    output.say(
      `whether there should be ${stored.length > 0 ? 'more' : 'any'}, conversation knows: give --conversation <host:port> or ${targetVariable('conversation')}, or see keytrail conversation ${conversationId}`,
    );
    return exitCodes.ok;
  }
  if ('failure' in expected) {
    if (stored.length === 0) throw expected.failure;
    output.say(
      `whether there should be more is not known: conversation could not be asked: ${describeFailure(expected.failure).text}`,
    );
    return exitCodes.incomplete;
  }
  const { known } = expected;
  const { exitCode, words } = known
    ? sessionId === ''
      ? judge(known, stored, listed.isMore)
      : judgeOne(known, sessionId)
    : nowhere(conversationId, stored.length);
  if (words !== '') output.say(words);
  return exitCode;
}

function nowhere(conversationId: string, stored: number): Judgement {
  return stored === 0
    ? { exitCode: exitCodes.refused, words: `conversation knows no conversation ${conversationId}, either` }
    : {
        exitCode: exitCodes.incomplete,
        words: `conversation knows no conversation ${conversationId}: it is being created, its creation was given up, or its rows are gone`,
      };
}

function judge(known: DescribeConversationResponse, stored: readonly SessionView[], isMore: boolean): Judgement {
  const { conversationId, currentEpoch, type, askedSession } = known;
  if (type === '' && !askedSession)
    return { exitCode: exitCodes.ok, words: 'no session of it was ever committed: nobody can see this conversation' };
  if (stored.length === 0)
    return {
      exitCode: exitCodes.incomplete,
      words: `conversation ${conversationId} is in epoch ${currentEpoch}, and none of its sessions is stored: nobody can read it. keytrail explain says what to do`,
    };
  const words = [...goneWords(known, stored, isMore), ...gapWords(known)];
  const exitCode = words.length > 0 ? exitCodes.incomplete : exitCodes.ok;
  const compared =
    known.epochsMore && !isMore
      ? [`older sessions than its ${known.epochs.length} newest epochs were not compared`]
      : [];
  return { exitCode, words: [...words, ...compared].join('\n') };
}

function goneWords(
  { conversationId, epochs }: DescribeConversationResponse,
  stored: readonly SessionView[],
  isMore: boolean,
) {
  const there = new Set(stored.map(({ sessionId }) => sessionId));
  // They are listed newest epoch first, and of the oldest one some may be left.
  const oldest = isMore ? (stored.at(-1)?.epoch ?? 0n) : 0n;
  const gone = epochs.filter(({ epoch, sessionId }) => epoch > oldest && !there.has(sessionId));
  if (gone.length === 0) return [];
  const told = gone.slice(0, toldAtMost).map(({ epoch, sessionId }) => `epoch ${epoch}, session ${sessionId}`);
  const more = gone.length > toldAtMost ? `; and ${gone.length - toldAtMost} more` : '';
  const counted = gone.length === 1 ? '1 more session, which is' : `${gone.length} more sessions, which are`;
  return [
    `conversation ${conversationId} has ${counted} not stored: nobody can read under ${gone.length === 1 ? 'it' : 'them'}. keytrail explain --session says what to do: ${told.join('; ')}${more}`,
  ];
}

function gapWords({ conversationId, epochGaps }: DescribeConversationResponse) {
  if (epochGaps.length === 0) return [];
  return [`conversation has no row of epoch ${epochGaps.join(', ')}: keytrail conversation ${conversationId}`];
}

function judgeOne({ conversationId, askedSession: one }: DescribeConversationResponse, sessionId: string): Judgement {
  if (!one)
    return {
      exitCode: exitCodes.refused,
      words: `conversation ${conversationId} knows no session ${sessionId}, either`,
    };
  if (one.standing === 'candidate' || one.standing === 'aborted')
    return {
      exitCode: exitCodes.ok,
      words: `no message is under session ${sessionId}: ${one.standing === 'aborted' ? `it was given up at ${time(one.decidedAt)}` : `it is no epoch yet, since ${time(one.beganAt)}`}`,
    };
  const epoch = one.epoch > 0n ? ` as epoch ${one.epoch}` : '';
  return {
    exitCode: exitCodes.incomplete,
    words: `session ${sessionId} was committed in conversation ${conversationId}${epoch}, and is not stored: nobody can read under it. keytrail explain says what to do`,
  };
}
