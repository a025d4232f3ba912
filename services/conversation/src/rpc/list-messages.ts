import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { ConversationService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { readableEpochs } from '../domain/entitlement.ts';
import type { Parts } from '../parts.ts';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { findConversation } from '../store/conversations.ts';
import { historyPoliciesOf } from '../store/history-policies.ts';
import { membershipsOf } from '../store/memberships.ts';
import { readMessages } from '../store/messages.ts';

const defaultLimit = 100;
/** Of ciphertext on one page, so that an answer stays within what both wires carry. */
const mostPageBytes = 2 * 1024 * 1024;

/** Pages through the log for a current member, leaving out what was written in epochs that are not the member's. */
export function listMessages({ db }: Parts): Rpc {
  return unary(ConversationService.method.listMessages, {
    allow: ['device'],
    async handle(request, call) {
      const { userId } = deviceCaller(call);
      const [conversation, memberships, policies] = await Promise.all([
        findConversation(db, request.conversationId),
        membershipsOf(db, request.conversationId, [userId]),
        historyPoliciesOf(db, [request.conversationId]),
      ]);
      const { spans, role } = memberships(userId);
      if (!conversation || role === undefined) throw notFoundOrNotPermitted();
      const { conversationId } = conversation;
      const { messages, more } = await readMessages(
        db,
        conversationId,
        request.afterSequence,
        readableEpochs(spans, policies(conversationId)),
        request.limit || defaultLimit,
        mostPageBytes,
      );
      return {
        messages: messages.map(({ sentAt, erasedAt, sender, ...message }) => ({
          ...message,
          conversationId,
          sentAt: timestampFromDate(sentAt),
          ...(erasedAt ? { erasedAt: timestampFromDate(erasedAt) } : { sender }),
        })),
        more,
        rotationDue: conversation.rotationDue,
      };
    },
  });
}
