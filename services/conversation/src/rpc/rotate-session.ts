import { create } from '@bufbuild/protobuf';
import { ConversationService, RotateSessionResponseSchema } from '@keytrail/contracts';
import { answerOnce, askedRequest, earlierAnswer, orAnswerMeanwhile } from '@keytrail/idempotency';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { keepTrace } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import { checkSession, type SessionPlace } from '../epochs/check-session.ts';
import { commitSession } from '../epochs/commit-session.ts';
import { refuseRevoked } from '../epochs/refuse-revoked.ts';
import { storeCandidate } from '../epochs/store-candidate.ts';
import type { Parts } from '../parts.ts';
import { epochConflict, notFoundOrNotPermitted, refuseClosed, rosterConflict } from '../refusals.ts';
import {
  advanceToSession,
  type ConversationState,
  findConversation,
  headerHashOf,
  lockConversation,
  readConversation,
  readRoster,
} from '../store/conversations.ts';
import { writerOf } from '../writer.ts';
import { tellCommitted } from './tell-committed.ts';

/** Makes the next epoch: of all sessions that are stored for it, the one whose commit finds epoch and roster unmoved wins. */
export function rotateSession(parts: Parts): Rpc {
  return unary(ConversationService.method.rotateSession, {
    allow: ['device'],
    async handle(request, call) {
      const caller = deviceCaller(call);
      const asked = askedRequest(ConversationService.method.rotateSession, request, caller.userId);
      const before = await earlierAnswer(parts.db, asked);
      if (before) return before;
      return orAnswerMeanwhile(parts.db, asked, rotate);

      async function rotate() {
        const expected = { epoch: request.expectedEpoch, rosterVersion: request.expectedRosterVersion };
        const place = await parts.db.transaction((tx) =>
          nextPlace(tx, request.conversationId, caller.userId, expected),
        );
        keepTrace('session_rotated');
        const session = await checkSession(parts, caller, request.session, place, 'session');
        const by = writerOf(parts);
        const stored = await storeCandidate(
          parts,
          session,
          { requestId: request.requestId, userId: caller.userId },
          by,
        );

        await parts.atFaultPoint('conversation.before-commit');
        const { conversationId } = place;
        const { response } = await answerOnce(parts.db, asked, async (tx) => {
          await refuseRevoked(tx, session);
          await commitSession(tx, session, stored, by, async () => {
            const won = await advanceToSession(tx, { conversationId, ...expected }, session.sessionId, by);
            if (!won) throw conflictWith(await findConversation(tx, conversationId), expected);
          });
          const conversation = await readConversation(tx, conversationId);
          await announceChange(tx, conversation, { notify: conversation.members.map(({ userId }) => userId) });
          return create(RotateSessionResponseSchema, { conversation, envelopesWritten: stored.envelopesWritten });
        });
        await parts.atFaultPoint('conversation.after-commit');
        tellCommitted(call, 'session rotated', session, stored);
        return response;
      }
    },
  });
}

interface Expected {
  readonly epoch: bigint;
  readonly rosterVersion: bigint;
}

/** The place of the next session, read at one moment: state and roster belong together. */
async function nextPlace(
  tx: Transaction,
  conversationId: string,
  userId: string,
  expected: Expected,
): Promise<SessionPlace> {
  const current = await lockConversation(tx, conversationId);
  const members = current ? await readRoster(tx, conversationId) : [];
  if (!current || !members.some((member) => member.userId === userId)) throw notFoundOrNotPermitted();
  refuseClosed(current);
  if (current.epoch !== expected.epoch || current.rosterVersion !== expected.rosterVersion)
    throw conflictWith(current, expected);
  return {
    conversationId: current.conversationId,
    epoch: current.epoch + 1n,
    rosterVersion: current.rosterVersion,
    members,
    historyPolicy: current.historyPolicy,
    previousHeaderHash: await headerHashOf(tx, current.conversationId, current.epoch),
  };
}

function conflictWith(current: ConversationState | undefined, expected: Expected) {
  if (!current) return notFoundOrNotPermitted();
  return current.epoch === expected.epoch ? rosterConflict(current) : epochConflict(current);
}
