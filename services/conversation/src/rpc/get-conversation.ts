import { ConversationService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { readConversationOf } from '../store/reads.ts';

/** A conversation of the caller; members who left are strangers to it. */
export function getConversation({ prisma }: Parts): Rpc {
  return unary(ConversationService.method.getConversation, {
    allow: ['device'],
    async handle({ conversationId }, call) {
      const { userId } = deviceCaller(call);
      const conversation = await readConversationOf(prisma, conversationId, userId);
      if (!conversation) throw notFoundOrNotPermitted();
      return { conversation };
    },
  });
}
