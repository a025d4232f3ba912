import { ConversationOperatorService, type DescribeConversationResponse } from '@keytrail/contracts';
import { readRefusal } from '@keytrail/rpc';
import { targetOf, targetVariable } from './connection.ts';
import { exitCodes } from './exit-codes.ts';
import { time } from './rendering.ts';
import type { Session } from './terminal.ts';

interface Asked {
  readonly conversationId: string;
  /** One of them; '' for all. */
  readonly sessionId: string;
}

/**
 * Says what it means that session stores none: rows that are gone look like ids that never were, and conversation tells them apart. Returns the
 * exit code.
 */
export async function explainAbsence(asked: Asked, session: Session): Promise<number> {
  const { options, environment, output } = session;
  const { conversationId, sessionId } = asked;
  if (!targetOf('conversation', options, environment)) {
    output.say(
      `whether there should be any, conversation knows: give --conversation <host:port> or ${targetVariable('conversation')}, or see keytrail conversation ${conversationId}`,
    );
    return exitCodes.ok;
  }
  const known = await describe(asked, session);
  const { exitCode, words } = known ? judge(known, sessionId) : nowhere(conversationId);
  output.say(words);
  return exitCode;
}

async function describe({ conversationId, sessionId }: Asked, { connections }: Session) {
  try {
    return await connections
      .client(ConversationOperatorService, 'conversation')
      .describeConversation({ conversationId, sessionId, epochsMax: 1 });
  } catch (error) {
    if (readRefusal(error).reason === 'NOT_FOUND_OR_NOT_PERMITTED') return undefined;
    throw error;
  }
}

interface Judgement {
  readonly exitCode: number;
  readonly words: string;
}

const nowhere = (conversationId: string): Judgement => ({
  exitCode: exitCodes.refused,
  words: `conversation knows no conversation ${conversationId}, either`,
});

function judge(known: DescribeConversationResponse, sessionId: string): Judgement {
  const { conversationId, currentEpoch, type, askedSession } = known;
  if (sessionId !== '') return judgeOne(known, sessionId);
  if (type === '' && !askedSession)
    return { exitCode: exitCodes.ok, words: 'no session of it was ever committed: nobody can see this conversation' };
  return {
    exitCode: exitCodes.incomplete,
    words: `conversation ${conversationId} is in epoch ${currentEpoch}, and none of its sessions is stored: nobody can read it. keytrail explain says what to do`,
  };
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
