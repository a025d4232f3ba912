import { ConversationKind, HistoryPolicy, MemberRole, RotationDueReason } from '@keytrail/contracts';

/** A member of a roster, as the roster hash covers it. */
export interface RosterMember {
  readonly userId: string;
  readonly role: MemberRole;
}

/** A current member with the roster version that the membership started with. */
export interface CurrentMember extends RosterMember {
  readonly fromRosterVersion: bigint;
}

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

/**
 * Who becomes an admin when the last admin leaves: the member who has been there longest, so that somebody can always remove
 * members. Undefined when an admin remains, or nobody.
 */
export function successorOfLastAdmin(remaining: readonly CurrentMember[]): CurrentMember | undefined {
  if (remaining.some((member) => member.role === MemberRole.ADMIN)) return undefined;
  return inRosterOrder(remaining).reduce<CurrentMember | undefined>(
    (oldest, member) => (oldest && oldest.fromRosterVersion <= member.fromRosterVersion ? oldest : member),
    undefined,
  );
}

/**
 * Why a rotation is due after a change: a removal outweighs a revocation, that an addition, that a change of policy, that a request, that the
 * number of messages, and that the session's age. Removal and revocation refuse messages under the current epoch; what comes later does not
 * take that back.
 */
export function rotationDueAfter(
  due: RotationDueReason,
  change: 'requested' | 'added' | 'removed',
  policy: HistoryPolicy,
): RotationDueReason {
  const wanted =
    change === 'removed'
      ? RotationDueReason.MEMBER_REMOVED
      : change === 'requested'
        ? RotationDueReason.REQUESTED
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
