import { HistoryPolicy } from '@keytrail/contracts';
import type { ParsedRosterChange, RosterPermissions } from '@keytrail/crypto';
import { type FieldProblem, inRosterOrder, type RosterMember } from './roster.ts';
import { sameBytes } from './session-header.ts';

/** What a signed roster change must say for the request that carries it. Lists that are left out must be empty. */
export interface WantedChange {
  readonly conversationId: string;
  readonly rosterVersion: bigint;
  readonly previousHash: Uint8Array;
  readonly added?: readonly RosterMember[];
  readonly removed?: readonly string[];
  readonly roles?: readonly RosterMember[];
  /** Undefined: must be absent. `any`: must be there. */
  readonly permissions?: RosterPermissions | 'any' | undefined;
  /** UNSPECIFIED by default. */
  readonly historyPolicy?: HistoryPolicy;
}

/** The first field of a signed change that disagrees with the request, in the order that is documented; undefined when all agree. */
export function disagreementOfChange(change: ParsedRosterChange, wanted: WantedChange): FieldProblem | undefined {
  const { added = [], removed = [], roles = [], historyPolicy = HistoryPolicy.UNSPECIFIED } = wanted;
  const checks: readonly (readonly [field: string, agrees: boolean, description: string])[] = [
    ['conversation_id', change.conversationId === wanted.conversationId, `must be ${wanted.conversationId}`],
    ['roster_version', change.rosterVersion === wanted.rosterVersion, `must be ${wanted.rosterVersion}`],
    ['previous_hash', sameBytes(change.previousHash, wanted.previousHash), "must be the roster's head"],
    ['added', sameMembers(change.added, added), 'must be the members of the request, ordered by user id'],
    ['removed', sameIds(change.removed, [...removed].sort()), 'must be the users of the request, ordered'],
    ['roles', sameMembers(change.roles, roles), 'must be the members of the request, ordered by user id'],
    ['permissions', samePermissions(change.permissions, wanted.permissions), 'must be those of the request'],
    ['history_policy', change.historyPolicy === historyPolicy, 'must be that of the request'],
  ];
  const broken = checks.find(([, agrees]) => !agrees);
  return broken && { field: broken[0], description: broken[2] };
}

function sameMembers(said: readonly RosterMember[], wanted: readonly RosterMember[]): boolean {
  const text = ({ userId, role }: RosterMember) => `${userId} ${role}`;
  return sameIds(said.map(text), inRosterOrder(wanted).map(text));
}

function sameIds(said: readonly string[], wanted: readonly string[]): boolean {
  return said.length === wanted.length && said.every((id, index) => id === wanted[index]);
}

function samePermissions(said: RosterPermissions | undefined, wanted: WantedChange['permissions']): boolean {
  if (said === undefined || wanted === undefined) return said === wanted;
  if (wanted === 'any') return true;
  return (['addMembers', 'removeMembers', 'changePolicy'] as const).every((what) => said[what] === wanted[what]);
}
