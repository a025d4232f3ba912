import type { HistoryPolicy, MemberRole } from '@keytrail/contracts';
import { RosterError } from './problems.ts';
import { checkedPermissions, checkedPolicy, mostRosterMembers, type RosterState } from './roster-state.ts';
import { decodeParts, encodeParts } from './transcript.ts';

const domain = 'keytrail/v1/roster-base';
const utf8 = new TextDecoder('utf-8', { fatal: true });

type Base = Pick<RosterState, 'members' | 'permissions' | 'historyPolicy'>;

/** The roster that a log begins with when its conversation is older than logs of rosters. */
export function rosterBaseText({ members, permissions, historyPolicy }: Base): Uint8Array {
  const { addMembers, removeMembers, changePolicy } = permissions;
  const people = members.flatMap(({ userId, role }) => [userId, role]);
  return encodeParts([domain, addMembers, removeMembers, changePolicy, historyPolicy, members.length, ...people]);
}

/**
 * The inverse of `rosterBaseText`.
 *
 * @throws RosterError (`malformed`).
 */
export function decodeRosterBase(bytes: Uint8Array): Base {
  const parts = decodeParts(bytes);
  if (parts === undefined || text(parts[0]) !== domain) throw new RosterError('malformed', 'base');
  const [addMembers, removeMembers, changePolicy, policy, count] = parts.slice(1, 6).map(small);
  const people = parts.slice(6);
  if (count === undefined || count > mostRosterMembers || people.length !== 2 * count)
    throw new RosterError('malformed', 'base');
  const members = Array.from({ length: count }, (_, i) => ({
    userId: text(people[2 * i]),
    role: small(people[2 * i + 1]) as MemberRole,
  }));
  if (members.some(({ userId, role }, i) => (role !== 1 && role !== 2) || userId <= (members[i - 1]?.userId ?? '')))
    throw new RosterError('malformed', 'base');
  const permissions = {
    addMembers: addMembers as MemberRole,
    removeMembers: removeMembers as MemberRole,
    changePolicy: changePolicy as MemberRole,
  };
  return {
    members,
    permissions: checkedPermissions(permissions),
    historyPolicy: checkedPolicy(policy as HistoryPolicy),
  };
}

function small(part: Uint8Array | undefined): number {
  if (part?.length !== 8) throw new RosterError('malformed', 'base');
  return Number(new DataView(part.buffer, part.byteOffset, 8).getBigUint64(0));
}

function text(part: Uint8Array | undefined): string {
  try {
    return utf8.decode(part);
  } catch {
    throw new RosterError('malformed', 'base');
  }
}
