import type { MemberRole } from '@keytrail/contracts';
import type { Transaction } from '@keytrail/storage';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { type ConversationState, lockConversation } from '../store/conversations.ts';
import { membershipsOf, type UserMemberships } from '../store/memberships.ts';

/** A conversation that is locked for a member, with the memberships of the users asked for. */
export interface LockedConversation {
  readonly current: ConversationState;
  readonly own: UserMemberships & { readonly role: MemberRole };
  membershipsOf(userId: string): UserMemberships;
}

/** Locks a conversation of a current member. Throws the one answer to strangers for everybody else. */
export async function lockAsMember(
  tx: Transaction,
  conversationId: string,
  userId: string,
  others: readonly string[] = [],
): Promise<LockedConversation> {
  const current = await lockConversation(tx, conversationId);
  const memberships = await membershipsOf(tx, conversationId, [userId, ...others]);
  const own = memberships(userId);
  if (!current || own.role === undefined) throw notFoundOrNotPermitted();
  return { current, own: { ...own, role: own.role }, membershipsOf: memberships };
}
