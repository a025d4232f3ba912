import { create } from '@bufbuild/protobuf';
import { ChangePolicyResponseSchema, ConversationKind, ConversationService, HistoryPolicy } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import { mayChangePolicy, rotationDueAfter } from '../domain/roster.ts';
import type { Parts } from '../parts.ts';
import { directRosterFixed, roleNotSufficient, rosterConflict } from '../refusals.ts';
import { followChange } from '../rosters/follow-change.ts';
import { verifyChange } from '../rosters/verify-change.ts';
import { advanceToPolicy, readConversation, readRoster } from '../store/conversations.ts';
import { addRosterChange } from '../store/roster-log.ts';
import { writerOf } from '../writer.ts';
import { lockAsMember } from './lock-as-member.ts';

/** Changes who may do what in a group, or the history policy of its epochs from the next one on. */
export function changePolicy(parts: Parts): Rpc {
  return unary(ConversationService.method.changePolicy, {
    allow: ['device'],
    async handle(request, call) {
      const caller = deviceCaller(call);
      const { permissions, historyPolicy } = request;
      if (!permissions && historyPolicy === HistoryPolicy.UNSPECIFIED)
        throw invalidField('permissions', 'must be there where history_policy is not');
      keepTrace('policy_changed');
      const verified = await verifyChange(parts, caller, request.signedChange, 'signed_change');
      const asked = askedRequest(ConversationService.method.changePolicy, request, caller.userId);
      const { response } = await answerOnce(parts.db, asked, async (tx) => {
        const { current, own } = await lockAsMember(tx, request.conversationId, caller.userId);
        const { conversationId } = current;
        if (current.kind === ConversationKind.DIRECT) throw directRosterFixed(conversationId);
        if (!mayChangePolicy(own.role, current.permissions)) throw roleNotSufficient(own.role);
        if (current.rosterVersion !== request.expectedRosterVersion) throw rosterConflict(current);
        const before = await readRoster(tx, conversationId);
        const after = followChange(current, before, verified, { permissions, historyPolicy });

        const rotationDue =
          after.historyPolicy === current.historyPolicy
            ? current.rotationDue
            : rotationDueAfter(current.rotationDue, 'policy', after.historyPolicy);
        const by = writerOf(parts);
        const version = await advanceToPolicy(tx, current, after, rotationDue, by);
        if (version === undefined) throw rosterConflict(current);
        const place = { conversationId, rosterVersion: version, previousHash: current.rosterHead };
        await addRosterChange(tx, place, verified, by);
        const conversation = await readConversation(tx, conversationId);
        await announceChange(tx, conversation, {
          notify: conversation.members.map(({ userId }) => userId),
          rotationBecameDue: rotationDue !== current.rotationDue,
        });
        tx.afterCommit(() => call.log.info({ conversationId, rosterVersion: String(version) }, 'policy changed'));
        return create(ChangePolicyResponseSchema, { conversation });
      });
      return response;
    },
  });
}
