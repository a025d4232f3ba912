import { create } from '@bufbuild/protobuf';
import { AddMembersResponseSchema, ConversationKind, ConversationService } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import { firstEpochOfNewMember } from '../domain/entitlement.ts';
import { mayAdd, mostMembers, problemOfRepeatedUser, rotationDueAfter } from '../domain/roster.ts';
import type { Parts } from '../parts.ts';
import {
  directRosterFixed,
  limitExceeded,
  memberStateConflict,
  roleNotSufficient,
  rosterConflict,
} from '../refusals.ts';
import { followChange } from '../rosters/follow-change.ts';
import { verifyChange } from '../rosters/verify-change.ts';
import { advanceToRoster, readConversation, readRoster } from '../store/conversations.ts';
import { historyPoliciesOf } from '../store/history-policies.ts';
import { openMemberships } from '../store/memberships.ts';
import { addRosterChange } from '../store/roster-log.ts';
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
      keepTrace('members_added');
      const verified = await verifyChange(parts, caller, request.signedChange, 'signed_change');
      const asked = askedRequest(ConversationService.method.addMembers, request, caller.userId);
      const { response } = await answerOnce(parts.db, asked, async (tx) => {
        const added = request.members.map(({ userId }) => userId);
        const locked = await lockAsMember(tx, request.conversationId, caller.userId, added);
        const { current, own } = locked;
        const { conversationId } = current;
        if (current.kind === ConversationKind.DIRECT) throw directRosterFixed(conversationId);
        const { permissions } = current;
        if (!mayAdd(own.role, permissions, request.members)) throw roleNotSufficient(own.role);
        if (current.rosterVersion !== request.expectedRosterVersion) throw rosterConflict(current);
        const present = added.find((userId) => locked.membershipsOf(userId).role !== undefined);
        if (present !== undefined) throw memberStateConflict(present, 'is a member already');
        const before = await readRoster(tx, conversationId);
        if (before.length + added.length > mostMembers) throw limitExceeded(mostMembers, 'members of a conversation');
        followChange(current, before, verified, { added: request.members });

        // Under the policy of the current epoch: one that was changed since is for the epochs to come.
        const policies = await historyPoliciesOf(tx, [conversationId]);
        const policy = policies(conversationId).at(-1)?.policy ?? current.historyPolicy;
        const rotationDue = rotationDueAfter(current.rotationDue, 'added', policy);
        const due = { rotationDue, minSendEpoch: current.minSendEpoch };
        const by = writerOf(parts);
        const version = await advanceToRoster(tx, current, due, by);
        if (version === undefined) throw rosterConflict(current);
        const place = { conversationId, rosterVersion: version, previousHash: current.rosterHead };
        await addRosterChange(tx, place, verified, by);
        await openMemberships(
          tx,
          conversationId,
          version,
          request.members.map(({ userId, role }) => ({
            userId,
            role,
            fromEpoch: firstEpochOfNewMember(current.epoch, policy, locked.membershipsOf(userId).spans),
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
