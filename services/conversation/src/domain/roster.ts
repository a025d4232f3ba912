import { ConversationKind, HistoryPolicy, MemberRole, RotationDueReason } from '@keytrail/contracts';
import type { RosterMember, RosterPermissions } from '@keytrail/crypto';

export type { RosterMember };

export interface FieldProblem {
  readonly field: string;
  readonly description: string;
}

export const mostMembers = 1000;

/** What is wrong with the roster of a new conversation, if anything. */
export function problemOfNewRoster(
  kind: ConversationKind,
  members: readonly RosterMember[],
  creator: string,
): FieldProblem | undefined {
  const twice = problemOfRepeatedUser(members);
  if (twice) return twice;
  const own = members.findIndex((member) => member.userId === creator);
  if (own < 0) return { field: 'members', description: 'must name the calling user' };
  if (members[own]?.role !== MemberRole.ADMIN)
    return { field: `members[${own}].role`, description: 'must be ADMIN for the calling user' };
  if (kind === ConversationKind.DIRECT && members.length !== 2)
    return { field: 'members', description: 'must be exactly 2 for a DIRECT conversation' };
  return undefined;
}

export function problemOfRepeatedUser(members: readonly RosterMember[]): FieldProblem | undefined {
  const seen = new Set<string>();
  for (const [index, { userId }] of members.entries()) {
    if (seen.has(userId)) return { field: `members[${index}].user_id`, description: 'names a user twice' };
    seen.add(userId);
  }
  return undefined;
}

/** Members in the order of their user ids' bytes. */
export function inRosterOrder<T extends { readonly userId: string }>(members: readonly T[]): T[] {
  return [...members].sort((a, b) => (a.userId < b.userId ? -1 : a.userId > b.userId ? 1 : 0));
}

/** Who became an admin because the last one left: everybody who folds the roster's log comes to the same. */
export function promotedIn(before: readonly RosterMember[], after: readonly RosterMember[]): RosterMember | undefined {
  const roles = new Map(before.map(({ userId, role }) => [userId, role]));
  return after.find(({ userId, role }) => role === MemberRole.ADMIN && roles.get(userId) === MemberRole.MEMBER);
}

/** Whether the role may add these members: whoever is not an admin adds no admin. */
export function mayAdd(role: MemberRole, permissions: RosterPermissions, added: readonly RosterMember[]): boolean {
  if (role === MemberRole.ADMIN) return true;
  return permissions.addMembers === MemberRole.MEMBER && added.every((member) => member.role === MemberRole.MEMBER);
}

/** Whether the role may remove members of these roles: admins are removed by admins alone. Leaving is no removing. */
export function mayRemove(
  role: MemberRole,
  permissions: RosterPermissions,
  removed: readonly (MemberRole | undefined)[],
): boolean {
  if (role === MemberRole.ADMIN) return true;
  return permissions.removeMembers === MemberRole.MEMBER && !removed.includes(MemberRole.ADMIN);
}

export function mayChangePolicy(role: MemberRole, permissions: RosterPermissions): boolean {
  return role === MemberRole.ADMIN || permissions.changePolicy === MemberRole.MEMBER;
}

/**
 * Why a rotation is due after a change: a removal outweighs a revocation, that an addition, that a change of policy, that a request, that the
 * number of messages, and that the session's age. Removal and revocation refuse messages under the current epoch; what comes later does not
 * take that back.
 */
export function rotationDueAfter(
  due: RotationDueReason,
  change: 'requested' | 'added' | 'removed' | 'policy',
  policy: HistoryPolicy,
): RotationDueReason {
  const wanted =
    change === 'removed'
      ? RotationDueReason.MEMBER_REMOVED
      : change === 'requested'
        ? RotationDueReason.REQUESTED
        : change === 'policy'
          ? RotationDueReason.POLICY_CHANGED
          : policy === HistoryPolicy.SHARED
            ? RotationDueReason.UNSPECIFIED
            : RotationDueReason.MEMBER_ADDED;
  return byWeight.indexOf(wanted) > byWeight.indexOf(due) ? wanted : due;
}

const byWeight: readonly RotationDueReason[] = [
  RotationDueReason.UNSPECIFIED,
  RotationDueReason.AGE,
  RotationDueReason.MESSAGE_COUNT,
  RotationDueReason.REQUESTED,
  RotationDueReason.POLICY_CHANGED,
  RotationDueReason.MEMBER_ADDED,
  RotationDueReason.DEVICE_REVOKED,
  RotationDueReason.MEMBER_REMOVED,
];
