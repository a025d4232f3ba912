import { HistoryPolicy, MemberRole, type RosterEntry } from '@keytrail/contracts';
import { equalBytes } from './bytes.ts';
import { rosterHash } from './hashes.ts';
import { lengths } from './primitives.ts';
import { RosterError } from './problems.ts';
import { decodeRosterBase } from './roster-base.ts';
import { type ParsedRosterChange, parseRosterChange, rosterEntryHash } from './roster-log.ts';
import {
  checkedPermissions,
  checkedPolicy,
  mostRosterMembers,
  type RosterMember,
  type RosterState,
} from './roster-state.ts';

const { ADMIN, MEMBER } = MemberRole;

/**
 * The roster after one more entry. Who signed it is verified elsewhere (`verifyRosterChange`); here it is held against the roster before: that it
 * is the next one, that its author was a member whose role allowed it, and that everybody who reads the log comes to the same members.
 *
 * @throws RosterError.
 */
export function foldRoster(state: RosterState, entry: RosterEntry): RosterState {
  const { conversationId, head, version } = state;
  const first = version === 0n;
  const { signedChange, erasedUserId, base } = entry;
  if (Number(signedChange !== undefined) + Number(erasedUserId !== '') + Number(base.length > 0) !== 1)
    throw new RosterError('malformed', 'entry');
  const based = base.length > 0;
  if (based ? !first : entry.rosterVersion !== version + 1n) throw new RosterError('version', `${entry.rosterVersion}`);
  const hash = rosterEntryHash({ conversationId, previousHash: head }, entry);
  if (!equalBytes(hash, entry.hash)) throw new RosterError('hash', `${entry.rosterVersion}`);

  const next = based
    ? decodeRosterBase(base)
    : signedChange === undefined
      ? { ...state, members: withoutErased(state, erasedUserId) }
      : changed(state, parseRosterChange(signedChange.change));
  const { members, permissions, historyPolicy } = next;
  const folded = { version: entry.rosterVersion, rosterHash: rosterHash(members), historyPolicy };
  return {
    conversationId,
    version: entry.rosterVersion,
    head: hash,
    members,
    permissions,
    historyPolicy,
    versions: [...state.versions, folded],
    isBased: state.isBased || based,
  };
}

type Content = Pick<RosterState, 'members' | 'permissions' | 'historyPolicy'>;

function withoutErased({ members, version }: RosterState, userId: string): RosterMember[] {
  if (version === 0n) throw new RosterError('version', 'an erasure begins no log');
  if (!members.some((member) => member.userId === userId)) throw new RosterError('member', userId);
  return withAdmin(members.filter((member) => member.userId !== userId));
}

/** When the last admin has left, the first of the rest takes over, by the bytes of their user ids: a rule without a second opinion. */
export function withAdmin(members: readonly RosterMember[]): RosterMember[] {
  if (members.some(({ role }) => role === ADMIN)) return [...members];
  return members.map((member, i) => (i === 0 ? { ...member, role: ADMIN } : member));
}

function changed(state: RosterState, change: ParsedRosterChange): Content {
  const { version, head, conversationId } = state;
  if (change.conversationId !== conversationId) throw new RosterError('malformed', 'conversation_id');
  if (change.rosterVersion !== version + 1n) throw new RosterError('version', `${change.rosterVersion}`);
  if (!equalBytes(change.previousHash, head) || head.length !== (version === 0n ? 0 : lengths.hash))
    throw new RosterError('chain', `${change.rosterVersion}`);
  if (version === 0n) return whole(change);

  const role = state.members.find(({ userId }) => userId === change.author.userId)?.role;
  if (role === undefined) throw new RosterError('author', change.author.userId);
  const { added, removed, roles } = change;
  const policy = change.permissions !== undefined || change.historyPolicy !== HistoryPolicy.UNSPECIFIED;
  const kinds = [added.length > 0, removed.length > 0, roles.length > 0, policy].filter(Boolean).length;
  if (kinds !== 1) throw new RosterError('malformed', 'it is to be one kind of change');
  if (added.length > 0) return { ...state, members: withAdded(state, role, added) };
  if (removed.length > 0) return { ...state, members: withRemoved(state, role, change) };
  if (roles.length > 0) return { ...state, members: withRoles(state, role, roles) };
  return withPolicy(state, role, change);
}

/** Version 1: the whole roster, by an admin of it. */
function whole({ added, removed, roles, permissions, historyPolicy, author }: ParsedRosterChange): Content {
  if (removed.length > 0 || roles.length > 0) throw new RosterError('malformed', 'version 1 is the whole roster');
  const members = inOrder(added);
  if (members.length > mostRosterMembers) throw new RosterError('malformed', 'added');
  if (members.find(({ userId }) => userId === author.userId)?.role !== ADMIN)
    throw new RosterError('author', author.userId);
  if (permissions === undefined) throw new RosterError('malformed', 'permissions');
  return { members, permissions: checkedPermissions(permissions), historyPolicy: checkedPolicy(historyPolicy) };
}

function withAdded(state: RosterState, role: MemberRole, added: readonly RosterMember[]): RosterMember[] {
  allow(role, state.permissions.addMembers, 'add');
  const more = inOrder(added);
  if (role !== ADMIN && more.some((member) => member.role !== MEMBER)) throw new RosterError('role', 'add an admin');
  const present = new Set(state.members.map(({ userId }) => userId));
  const twice = more.find(({ userId }) => present.has(userId));
  if (twice !== undefined) throw new RosterError('member', twice.userId);
  if (present.size + more.length > mostRosterMembers) throw new RosterError('malformed', 'too many members');
  return [...state.members, ...more].sort((a, b) => (a.userId < b.userId ? -1 : 1));
}

function withRemoved(state: RosterState, role: MemberRole, { removed, author }: ParsedRosterChange): RosterMember[] {
  const leaving = new Set(removed);
  refuseDisorder(removed);
  const leaves = removed.length === 1 && leaving.has(author.userId);
  if (!leaves) allow(role, state.permissions.removeMembers, 'remove');
  const gone = state.members.filter(({ userId }) => leaving.has(userId));
  if (gone.length !== leaving.size) throw new RosterError('member', 'somebody who is removed is no member');
  if (!leaves && role !== ADMIN && gone.some((member) => member.role === ADMIN))
    throw new RosterError('role', 'remove an admin');
  return withAdmin(state.members.filter(({ userId }) => !leaving.has(userId)));
}

function withRoles(state: RosterState, role: MemberRole, roles: readonly RosterMember[]): RosterMember[] {
  allow(role, ADMIN, 'change roles');
  const given = new Map(inOrder(roles).map((member) => [member.userId, member.role]));
  const members = state.members.map((member) => ({
    userId: member.userId,
    role: given.get(member.userId) ?? member.role,
  }));
  const known = members.filter(({ userId }) => given.has(userId)).length;
  if (known !== given.size) throw new RosterError('member', 'somebody with a role is no member');
  if (!members.some((member) => member.role === ADMIN)) throw new RosterError('member', 'no admin is left');
  return members;
}

function withPolicy(state: RosterState, role: MemberRole, change: ParsedRosterChange): Content {
  allow(role, state.permissions.changePolicy, 'change the policy');
  const { permissions, historyPolicy } = change;
  return {
    members: state.members,
    permissions: permissions === undefined ? state.permissions : checkedPermissions(permissions),
    historyPolicy: historyPolicy === HistoryPolicy.UNSPECIFIED ? state.historyPolicy : checkedPolicy(historyPolicy),
  };
}

function allow(role: MemberRole, needed: MemberRole, what: string): void {
  if (role !== ADMIN && needed !== MEMBER) throw new RosterError('role', what);
}

/** The members of a list that is in order and names nobody twice. */
function inOrder(members: readonly RosterMember[]): RosterMember[] {
  refuseDisorder(members.map(({ userId }) => userId));
  return members.map(({ userId, role }) => {
    if (userId === '' || (role !== ADMIN && role !== MEMBER)) throw new RosterError('malformed', 'member');
    return { userId, role };
  });
}

function refuseDisorder(userIds: readonly string[]): void {
  if (userIds.some((userId, i) => i > 0 && (userIds[i - 1] ?? '') >= userId))
    throw new RosterError('malformed', 'order');
}
