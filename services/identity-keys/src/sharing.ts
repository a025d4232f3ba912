import type { Client } from '@connectrpc/connect';
import type { Caller } from '@keytrail/auth';
import type { ConversationService } from '@keytrail/contracts';
import { LRUCache } from 'lru-cache';

export type ConversationPeer = Pick<Client<typeof ConversationService>, 'listSharedUsers'>;

/** Who may know about whom: device lists, device logs and typed claim reasons are for those who share a conversation. */
export interface Sharing {
  /**
   * Of the users, those about whom the caller may know: its own and those with whom it shares a conversation (and, where they count, those who left
   * one that the caller is in); for services and operators, all. Throws PEER_UNAVAILABLE when conversation must be asked and cannot be.
   */
  knownTo(caller: Caller, userIds: readonly string[]): Promise<ReadonlySet<string>>;
  /** Of the users, those about whom the caller is known to may know without asking anybody: the rest may or may not be strangers. */
  rememberedFor(caller: Caller, userIds: readonly string[]): ReadonlySet<string>;
}

const remembered = 100_000;
/** As many as ListSharedUsers takes at once. */
const usersPerCall = 1_000;

/**
 * Asks conversation, once per request for all users it does not remember. That two users share a conversation is remembered for
 * `rememberMs`: so long a conversation counts that one of them has left. That they share none is never remembered: the next may
 * have just begun. Nor is it taken from a call that is on its way, which may have looked before.
 */
export function createSharing(
  conversation: ConversationPeer,
  { rememberMs, formerMembers }: { readonly rememberMs: number; readonly formerMembers: boolean },
): Sharing {
  const sharing = rememberMs > 0 ? new LRUCache<string, true>({ max: remembered, ttl: rememberMs }) : undefined;
  const asking = new Map<string, Promise<ReadonlySet<string>>>();

  async function ask(userId: string, others: readonly string[]): Promise<ReadonlySet<string>> {
    const request = { userId, otherUserIds: [...others], includeFormerMembers: formerMembers };
    const { userIds } = await conversation.listSharedUsers(request);
    for (const other of userIds) sharing?.set(pairOf(userId, other), true);
    return new Set(userIds);
  }

  async function askOnce(userId: string, others: readonly string[]): Promise<string[]> {
    const shared: string[] = [];
    const underWay = others.flatMap((other) => {
      const asked = asking.get(pairOf(userId, other));
      return asked === undefined ? [] : [asked.then((answer) => answer.has(other) && shared.push(other))];
    });
    // What became of somebody else's call is only good when it says yes.
    if (underWay.length > 0) await Promise.allSettled(underWay);
    const known = new Set(shared);
    const open = others.filter((other) => !known.has(other));
    const calls: Promise<ReadonlySet<string>>[] = [];
    for (let from = 0; from < open.length; from += usersPerCall) {
      const group = open.slice(from, from + usersPerCall);
      const call = ask(userId, group);
      for (const other of group) asking.set(pairOf(userId, other), call);
      const forget = () => {
        for (const other of group) if (asking.get(pairOf(userId, other)) === call) asking.delete(pairOf(userId, other));
      };
      call.then(forget, forget);
      calls.push(call);
    }
    for (const answer of await Promise.all(calls)) shared.push(...answer);
    return shared;
  }

  function rememberedFor(caller: Caller, userIds: readonly string[]): ReadonlySet<string> {
    if (caller.kind !== 'device') return new Set(userIds);
    return new Set(
      userIds.filter((other) => other === caller.userId || sharing?.get(pairOf(caller.userId, other)) === true),
    );
  }

  return {
    rememberedFor,
    async knownTo(caller, userIds) {
      const known = rememberedFor(caller, userIds);
      if (caller.kind !== 'device' || known.size === userIds.length) return known;
      const unknown = [...new Set(userIds)].filter((userId) => !known.has(userId));
      if (unknown.length === 0) return known;
      return new Set([...known, ...(await askOnce(caller.userId, unknown))]);
    },
  };
}

/** Who has left knows nothing of who stayed: the order counts. A space is in no user id. */
function pairOf(asking: string, other: string): string {
  return `${asking} ${other}`;
}
