import { create } from '@bufbuild/protobuf';
import { ConversationService, RequestRotationResponseSchema } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import { rotationDueAfter } from '../domain/roster.ts';
import type { Parts } from '../parts.ts';
import { epochConflict, refuseClosed } from '../refusals.ts';
import { readConversation, setRotationDue } from '../store/conversations.ts';
import { writerOf } from '../writer.ts';
import { lockAsMember } from './lock-as-member.ts';

/** Marks a rotation as due, unless the epoch has been replaced already or one is due for a weightier reason. */
export function requestRotation(parts: Parts): Rpc {
  return unary(ConversationService.method.requestRotation, {
    allow: ['device'],
    async handle(request, call) {
      const caller = deviceCaller(call);
      const asked = askedRequest(ConversationService.method.requestRotation, request, caller.userId);
      const { response } = await answerOnce(parts.db, asked, async (tx) => {
        const { current } = await lockAsMember(tx, request.conversationId, caller.userId);
        refuseClosed(current);
        const { conversationId } = current;
        if (request.expectedEpoch > current.epoch) throw epochConflict(current);
        const due = rotationDueAfter(current.rotationDue, 'requested', current.historyPolicy);
        if (request.expectedEpoch < current.epoch || due === current.rotationDue)
          return create(RequestRotationResponseSchema, { conversation: await readConversation(tx, conversationId) });

        keepTrace('rotation_requested');
        await setRotationDue(tx, conversationId, due, writerOf(parts));
        const conversation = await readConversation(tx, conversationId);
        await announceChange(tx, conversation, {
          notify: conversation.members.map(({ userId }) => userId),
          rotationBecameDue: true,
        });
        return create(RequestRotationResponseSchema, { conversation });
      });
      return response;
    },
  });
}
