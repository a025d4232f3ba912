import { type ConversationPermissions, HistoryPolicy, MemberRole } from '@keytrail/contracts';
import { RosterError } from './problems.ts';

export interface RosterMember {
  readonly userId: string;
  readonly role: MemberRole;
}

/** Which role is needed for what. */
export type RosterPermissions = Omit<ConversationPermissions, '$typeName' | '$unknown'>;

/** What session headers say of a version of the roster. */
export interface RosterVersion {
  readonly version: bigint;
  /** 32 bytes. */
  readonly rosterHash: Uint8Array;
  readonly historyPolicy: HistoryPolicy;
}

/** What a roster's log amounts to. Plain data, to be remembered. */
export interface RosterState {
  readonly conversationId: string;
  /** 0 before the first entry. */
  readonly version: bigint;
  /** Hash of the entry of that version; empty for version 0. */
  readonly head: Uint8Array;
  /** In the order of their user ids. */
  readonly members: readonly RosterMember[];
  readonly permissions: RosterPermissions;
  readonly historyPolicy: HistoryPolicy;
  /** All versions that were folded, in their order. */
  readonly versions: readonly RosterVersion[];
  /** The log begins with a roster that nobody signed. */
  readonly isBased: boolean;
}

export const mostRosterMembers = 1000;
const { ADMIN, MEMBER } = MemberRole;

export function emptyRoster(conversationId: string): RosterState {
  return {
    conversationId,
    version: 0n,
    head: new Uint8Array(),
    members: [],
    permissions: { addMembers: ADMIN, removeMembers: ADMIN, changePolicy: ADMIN },
    historyPolicy: HistoryPolicy.UNSPECIFIED,
    versions: [],
    isBased: false,
  };
}

/** @throws RosterError (`malformed`). */
export function checkedPermissions({ addMembers, removeMembers, changePolicy }: RosterPermissions): RosterPermissions {
  if ([addMembers, removeMembers, changePolicy].some((role) => role !== ADMIN && role !== MEMBER))
    throw new RosterError('malformed', 'permissions');
  return { addMembers, removeMembers, changePolicy };
}

/** @throws RosterError (`malformed`). */
export function checkedPolicy(policy: HistoryPolicy): HistoryPolicy {
  if (policy !== HistoryPolicy.OWN_MEMBERSHIP && policy !== HistoryPolicy.SHARED)
    throw new RosterError('malformed', 'history_policy');
  return policy;
}
