import { create } from '@bufbuild/protobuf';
import { ChangeRolesResponseSchema, ConversationKind, ConversationService, MemberRole } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import { problemOfRepeatedUser } from '../domain/roster.ts';
import type { Parts } from '../parts.ts';
import { directRosterFixed, memberStateConflict, roleNotSufficient, rosterConflict } from '../refusals.ts';
import { followChange } from '../rosters/follow-change.ts';
import { verifyChange } from '../rosters/verify-change.ts';
import { advanceToRoster, readConversation, readRoster } from '../store/conversations.ts';
import { setRole } from '../store/memberships.ts';
import { addRosterChange } from '../store/roster-log.ts';
import { writerOf } from '../writer.ts';
import { lockAsMember } from './lock-as-member.ts';

/** Gives members of a group other roles; one of them stays an admin. */
export function changeRoles(parts: Parts): Rpc {
  return unary(ConversationService.method.changeRoles, {
    allow: ['device'],
    async handle(request, call) {
      const caller = deviceCaller(call);
      const problem = problemOfRepeatedUser(request.members);
      if (problem) throw invalidField(problem.field, problem.description);
      keepTrace('roles_changed');
      const verified = await verifyChange(parts, caller, request.signedChange, 'signed_change');
      const asked = askedRequest(ConversationService.method.changeRoles, request, caller.userId);
      const { response } = await answerOnce(parts.db, asked, async (tx) => {
        const roles = request.members.map(({ userId, role }) => ({ userId, role }));
        const changed = roles.map(({ userId }) => userId);
        const locked = await lockAsMember(tx, request.conversationId, caller.userId, changed);
        const { current, own } = locked;
        const { conversationId } = current;
        if (current.kind === ConversationKind.DIRECT) throw directRosterFixed(conversationId);
        if (own.role !== MemberRole.ADMIN) throw roleNotSufficient(own.role);
        if (current.rosterVersion !== request.expectedRosterVersion) throw rosterConflict(current);
        const absent = changed.find((userId) => locked.membershipsOf(userId).role === undefined);
        if (absent !== undefined) throw memberStateConflict(absent, 'is not a member');
        const before = await readRoster(tx, conversationId);
        const given = new Map(roles.map(({ userId, role }) => [userId, role]));
        if (!before.some(({ userId, role }) => (given.get(userId) ?? role) === MemberRole.ADMIN))
          throw memberStateConflict(changed[0] ?? '', 'is the last admin');
        followChange(current, before, verified, { roles });

        const by = writerOf(parts);
        const { rotationDue, minSendEpoch } = current;
        const version = await advanceToRoster(tx, current, { rotationDue, minSendEpoch }, by);
        if (version === undefined) throw rosterConflict(current);
        const place = { conversationId, rosterVersion: version, previousHash: current.rosterHead };
        await addRosterChange(tx, place, verified, by);
        // Admins first: between two statements, too, there is one.
        for (const { userId, role } of [...roles].sort((a, b) => a.role - b.role))
          await setRole(tx, conversationId, userId, role);
        const conversation = await readConversation(tx, conversationId);
        await announceChange(tx, conversation, { notify: conversation.members.map(({ userId }) => userId) });
        tx.afterCommit(() =>
          call.log.info({ conversationId, rosterVersion: String(version), changed: roles.length }, 'roles changed'),
        );
        return create(ChangeRolesResponseSchema, { conversation });
      });
      return response;
    },
  });
}
