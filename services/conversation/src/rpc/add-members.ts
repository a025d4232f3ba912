import { create } from '@bufbuild/protobuf';
import { AddMembersResponseSchema, ConversationKind, ConversationService, MemberRole } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import { firstEpochOfNewMember } from '../domain/entitlement.ts';
import { mostMembers, problemOfRepeatedUser, rotationDueAfter } from '../domain/roster.ts';
import type { Parts } from '../parts.ts';
import {
  directRosterFixed,
  limitExceeded,
  memberStateConflict,
  roleNotSufficient,
  rosterConflict,
} from '../refusals.ts';
import { advanceToRoster, readConversation, readRoster } from '../store/conversations.ts';
import { openMemberships } from '../store/memberships.ts';
import { writerOf } from '../writer.ts';
import { lockAsMember } from './lock-as-member.ts';
import { refuseErased } from './refuse-erased.ts';

/** Adds members to a group. Unless history is shared, they start with the epoch that a rotation, now due, will make. */
export function addMembers(parts: Parts): Rpc {
  return unary(ConversationService.method.addMembers, {
    allow: ['device'],
    async handle(request, call) {
      const caller = deviceCaller(call);
      const problem = problemOfRepeatedUser(request.members);
      if (problem) throw invalidField(problem.field, problem.description);
      const asked = askedRequest(ConversationService.method.addMembers, request, caller.userId);
      const { response } = await answerOnce(parts.db, asked, async (tx) => {
        const added = request.members.map(({ userId }) => userId);
        const locked = await lockAsMember(tx, request.conversationId, caller.userId, added);
        const { current, own } = locked;
        const { conversationId } = current;
        if (current.kind === ConversationKind.DIRECT) throw directRosterFixed(conversationId);
        if (own.role !== MemberRole.ADMIN) throw roleNotSufficient(own.role);
        if (current.rosterVersion !== request.expectedRosterVersion) throw rosterConflict(current);
        const present = added.find((userId) => locked.membershipsOf(userId).role !== undefined);
        if (present !== undefined) throw memberStateConflict(present, 'is a member already');
        const before = await readRoster(tx, conversationId);
        if (before.length + added.length > mostMembers) throw limitExceeded(mostMembers, 'members of a conversation');

        keepTrace('members_added');
        const rotationDue = rotationDueAfter(current.rotationDue, 'added', current.historyPolicy);
        const due = { rotationDue, minSendEpoch: current.minSendEpoch };
        const version = await advanceToRoster(tx, current, due, writerOf(parts));
        if (version === undefined) throw rosterConflict(current);
        await openMemberships(
          tx,
          conversationId,
          version,
          request.members.map(({ userId, role }) => ({
            userId,
            role,
            fromEpoch: firstEpochOfNewMember(current.epoch, current.historyPolicy, locked.membershipsOf(userId).spans),
          })),
        );
        const conversation = await readConversation(tx, conversationId);
        await announceChange(tx, conversation, {
          notify: conversation.members.map(({ userId }) => userId),
          rotationBecameDue: rotationDue !== current.rotationDue,
        });
        tx.afterCommit(() =>
          call.log.info({ conversationId, rosterVersion: String(version), added: added.length }, 'members added'),
        );
        return create(AddMembersResponseSchema, { conversation });
      }).catch((error: unknown) => refuseErased(parts.db, request.members, error));
      return response;
    },
  });
}
