import { ConversationService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { usersSharingWith } from '../store/memberships.ts';

/** Tells other services with which of the named users a user shares a conversation now. */
export function listSharedUsers({ db }: Parts): Rpc {
  return unary(ConversationService.method.listSharedUsers, {
    allow: ['service'],
    async handle({ userId, otherUserIds: others, includeFormerMembers: includeFormer }) {
      return { userIds: await usersSharingWith(db, userId, { others, includeFormer }) };
    },
  });
}
