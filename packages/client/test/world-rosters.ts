import { create } from '@bufbuild/protobuf';
import {
  type Conversation,
  type MemberRole,
  type RosterEntry,
  RosterEntrySchema,
  RotationDueReason,
  type SignedRosterChange,
} from '@keytrail/contracts';
import { emptyRoster, foldRoster, type RosterState, rosterEntryHash } from '@keytrail/crypto';
import { refuse } from '@keytrail/rpc/refusal';

/** Rosters and their logs as a service keeps them that believes what it is told; tests may put other entries into a log. */
export class WorldRosters {
  readonly logs = new Map<string, RosterEntry[]>();
  readonly #states = new Map<string, RosterState>();

  log(conversationId: string): RosterEntry[] {
    const log = this.logs.get(conversationId) ?? [];
    this.logs.set(conversationId, log);
    return log;
  }

  state(conversationId: string): RosterState {
    return this.#states.get(conversationId) ?? emptyRoster(conversationId);
  }

  /** Appends a change, and returns what a conversation says of its roster then. */
  signed(conversationId: string, signedChange: SignedRosterChange | undefined) {
    if (!signedChange) throw refuse('INVALID_FIELD', 'not signed');
    return this.append(conversationId, { signedChange });
  }

  append(conversationId: string, content: Partial<Pick<RosterEntry, 'signedChange' | 'erasedUserId'>>) {
    const before = this.state(conversationId);
    const entry = create(RosterEntrySchema, { rosterVersion: before.version + 1n, ...content });
    entry.hash = rosterEntryHash({ conversationId, previousHash: before.head }, entry);
    const state = foldRoster(before, entry);
    this.#states.set(conversationId, state);
    this.log(conversationId).push(entry);
    return this.said(conversationId);
  }

  said(conversationId: string) {
    const { version, head, members, permissions, historyPolicy } = this.state(conversationId);
    return { rosterVersion: version, rosterHead: head, members: members.map(memberOf), permissions, historyPolicy };
  }

  /** The conversation after a change of its roster. */
  changed(
    current: Conversation,
    request: { readonly expectedRosterVersion: bigint; readonly signedChange?: SignedRosterChange | undefined },
    rotationDue: RotationDueReason = current.rotationDue,
  ): Conversation {
    if (current.rosterVersion !== request.expectedRosterVersion) {
      throw refuse('ROSTER_CONFLICT', 'the roster changed meanwhile', {
        metadata: { current_roster_version: String(current.rosterVersion) },
      });
    }
    const { conversationId } = current;
    const { permissions, ...said } = this.signed(conversationId, request.signedChange);
    return {
      ...current,
      ...said,
      permissions: { $typeName: 'keytrail.conversation.v1.ConversationPermissions', ...permissions },
      rotationDue,
    };
  }
}

function memberOf({ userId, role }: { readonly userId: string; readonly role: MemberRole }) {
  return { $typeName: 'keytrail.conversation.v1.Member' as const, userId, role, fromEpoch: 1n };
}

export const { MEMBER_ADDED, MEMBER_REMOVED, POLICY_CHANGED } = RotationDueReason;
