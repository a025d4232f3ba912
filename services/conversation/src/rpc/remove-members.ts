import { create } from '@bufbuild/protobuf';
import { ConversationKind, ConversationService, MemberRole, RemoveMembersResponseSchema } from '@keytrail/contracts';
import { answerOnce, askedRequest } from '@keytrail/idempotency';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import { mayRemove, promotedIn, rotationDueAfter } from '../domain/roster.ts';
import type { Parts } from '../parts.ts';
import { directRosterFixed, memberStateConflict, roleNotSufficient, rosterConflict } from '../refusals.ts';
import { followChange } from '../rosters/follow-change.ts';
import { verifyChange } from '../rosters/verify-change.ts';
import { advanceToRoster, readConversation, readRoster } from '../store/conversations.ts';
import { closeMemberships, setRole } from '../store/memberships.ts';
import { addRosterChange } from '../store/roster-log.ts';
import { writerOf } from '../writer.ts';
import { lockAsMember } from './lock-as-member.ts';

/** Removes members from a group; from now on messages under the current epoch are refused, until the session is rotated. */
export function removeMembers(parts: Parts): Rpc {
  return unary(ConversationService.method.removeMembers, {
    allow: ['device'],
    async handle(request, call) {
      const caller = deviceCaller(call);
      const removed = request.userIds;
      keepTrace('members_removed');
      const verified = await verifyChange(parts, caller, request.signedChange, 'signed_change');
      const asked = askedRequest(ConversationService.method.removeMembers, request, caller.userId);
      const { response } = await answerOnce(parts.db, asked, async (tx) => {
        const locked = await lockAsMember(tx, request.conversationId, caller.userId, removed);
        const { current, own } = locked;
        const { conversationId } = current;
        if (current.kind === ConversationKind.DIRECT) throw directRosterFixed(conversationId);
        const leaves = removed.length === 1 && removed[0] === caller.userId;
        const roles = removed.map((userId) => locked.membershipsOf(userId).role);
        if (!leaves && !mayRemove(own.role, current.permissions, roles)) throw roleNotSufficient(own.role);
        if (current.rosterVersion !== request.expectedRosterVersion) throw rosterConflict(current);
        const absent = removed.find((userId) => locked.membershipsOf(userId).role === undefined);
        if (absent !== undefined) throw memberStateConflict(absent, 'is not a member');

        const before = await readRoster(tx, conversationId);
        const after = followChange(current, before, verified, { removed });

        const rotationDue = rotationDueAfter(current.rotationDue, 'removed', current.historyPolicy);
        const due = { rotationDue, minSendEpoch: current.epoch + 1n };
        const by = writerOf(parts);
        const version = await advanceToRoster(tx, current, due, by);
        if (version === undefined) throw rosterConflict(current);
        const place = { conversationId, rosterVersion: version, previousHash: current.rosterHead };
        await addRosterChange(tx, place, verified, by);
        const successor = promotedIn(before, after.members);
        if (successor) await setRole(tx, conversationId, successor.userId, MemberRole.ADMIN);
        await closeMemberships(tx, conversationId, current.epoch, version, removed);

        const conversation = await readConversation(tx, conversationId);
        await announceChange(tx, conversation, {
          notify: [...conversation.members.map(({ userId }) => userId), ...removed],
          rotationBecameDue: rotationDue !== current.rotationDue,
        });
        tx.afterCommit(() =>
          call.log.info(
            {
              conversationId,
              rosterVersion: String(version),
              removed: removed.length,
              promoted: successor ? 1 : 0,
            },
            'members removed',
          ),
        );
        return create(RemoveMembersResponseSchema, { conversation });
      });
      return response;
    },
  });
}
