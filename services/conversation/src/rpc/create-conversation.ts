import { create } from '@bufbuild/protobuf';
import { ConversationKind, ConversationService, CreateConversationResponseSchema } from '@keytrail/contracts';
import { deriveConversationId } from '@keytrail/crypto';
import { answerOnce, askedRequest, earlierAnswer, orAnswerMeanwhile, requestIdReused } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { keepTrace } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import { inRosterOrder, problemOfNewRoster } from '../domain/roster.ts';
import { type CheckedSession, checkSession } from '../epochs/check-session.ts';
import { commitSession } from '../epochs/commit-session.ts';
import { refuseRevoked } from '../epochs/refuse-revoked.ts';
import { storeCandidate } from '../epochs/store-candidate.ts';
import type { Parts } from '../parts.ts';
import { directConversationExists } from '../refusals.ts';
import { beginRoster } from '../rosters/follow-change.ts';
import { verifyChange } from '../rosters/verify-change.ts';
import { findDirectConversation, insertConversation, readConversation } from '../store/conversations.ts';
import { openMemberships } from '../store/memberships.ts';
import { addRosterChange } from '../store/roster-log.ts';
import { writerOf } from '../writer.ts';
import { refuseErased, refuseErasedMembers } from './refuse-erased.ts';
import { tellCommitted } from './tell-committed.ts';

/** Makes a conversation with its first session: the session is stored first, and the commit makes both visible at once. */
export function createConversation(parts: Parts): Rpc {
  return unary(ConversationService.method.createConversation, {
    allow: ['device'],
    async handle(request, call) {
      const caller = deviceCaller(call);
      const problem = problemOfNewRoster(request.kind, request.members, caller.userId);
      if (problem) throw invalidField(problem.field, problem.description);
      keepTrace('conversation_created');

      const asked = askedRequest(ConversationService.method.createConversation, request, caller.userId);
      const before = await earlierAnswer(parts.db, asked);
      if (before) return before;
      return orAnswerMeanwhile(parts.db, asked, make);

      async function make() {
        const members = inRosterOrder(request.members);
        await refuseErasedMembers(parts.db, members);
        const pair = request.kind === ConversationKind.DIRECT ? members.map(({ userId }) => userId) : undefined;
        const existing = pair && (await findDirectConversation(parts.db, pair));
        if (existing) throw directConversationExists(existing);

        const conversationId = deriveConversationId(caller.userId, request.requestId);
        const session = await checkSession(
          parts,
          caller,
          request.initialSession,
          { conversationId, epoch: 1n, rosterVersion: 1n, members },
          'initial_session',
        );
        const verified = await verifyChange(parts, caller, request.signedRoster, 'signed_roster');
        const { historyPolicy } = session.header;
        const { permissions } = beginRoster(conversationId, verified, {
          added: members,
          permissions: 'any',
          historyPolicy,
        });
        const by = writerOf(parts);
        const stored = await storeCandidate(
          parts,
          session,
          { requestId: request.requestId, userId: caller.userId },
          by,
        );

        await parts.atFaultPoint('conversation.before-commit');
        const { response } = await answerOnce(parts.db, asked, async (tx) => {
          await refuseRevoked(tx, session);
          await commitSession(tx, session, stored, by, () => insertNew(tx, session));
          await openMemberships(
            tx,
            conversationId,
            1n,
            members.map(({ userId, role }) => ({ userId, role, fromEpoch: 1n })),
          );
          const place = { conversationId, rosterVersion: 1n, previousHash: new Uint8Array() };
          await addRosterChange(tx, place, verified, by);
          const conversation = await readConversation(tx, conversationId);
          await announceChange(tx, conversation, { notify: members.map(({ userId }) => userId) });
          return create(CreateConversationResponseSchema, {
            conversation,
            envelopesWritten: stored.envelopesWritten,
          });
        }).catch((error: unknown) => refuseErased(parts.db, members, error));
        await parts.atFaultPoint('conversation.after-commit');
        tellCommitted(call, 'conversation created', session, stored);
        return response;

        async function insertNew(tx: Transaction, { sessionId }: CheckedSession): Promise<void> {
          const { kind } = request;
          const inserted = await insertConversation(
            tx,
            { conversationId, kind, historyPolicy, permissions, sessionId, members },
            by,
          );
          if (inserted) return;
          const winner = pair && (await findDirectConversation(tx, pair));
          throw winner && winner !== conversationId
            ? directConversationExists(winner)
            : requestIdReused(request.requestId);
        }
      }
    },
  });
}
