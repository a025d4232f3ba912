import { create } from '@bufbuild/protobuf';
import { RosterEntrySchema } from '@keytrail/contracts';
import {
  emptyRoster,
  foldRoster,
  RosterError,
  type RosterMember,
  type RosterState,
  rosterEntryHash,
} from '@keytrail/crypto';
import { inRosterOrder } from '../domain/roster.ts';
import { disagreementOfChange, type WantedChange } from '../domain/roster-change.ts';
import { rosterChangeMismatch } from '../refusals.ts';
import type { ConversationState } from '../store/conversations.ts';
import type { VerifiedChange } from './verify-change.ts';

/** What a change says that is wanted of a roster; nothing else. */
export type WantedOfRoster = Omit<WantedChange, 'conversationId' | 'rosterVersion' | 'previousHash'>;

/** The roster that a conversation begins with. Throws ROSTER_CHANGE_MISMATCH. */
export function beginRoster(conversationId: string, verified: VerifiedChange, wanted: WantedOfRoster): RosterState {
  return follow(emptyRoster(conversationId), verified, wanted);
}

/**
 * The roster after a change, folded by the very function that its members fold it by: what the database has and what they verify are the same.
 * Throws ROSTER_CHANGE_MISMATCH when the change says something else than the request, or does not follow from the roster.
 */
export function followChange(
  current: ConversationState,
  members: readonly RosterMember[],
  verified: VerifiedChange,
  wanted: WantedOfRoster,
): RosterState {
  const { conversationId, rosterVersion, rosterHead, permissions, historyPolicy } = current;
  const state: RosterState = {
    ...emptyRoster(conversationId),
    version: rosterVersion,
    head: rosterHead,
    members: inRosterOrder(members).map(({ userId, role }) => ({ userId, role })),
    permissions,
    historyPolicy,
  };
  return follow(state, verified, wanted);
}

function follow(state: RosterState, { signed, change }: VerifiedChange, wanted: WantedOfRoster): RosterState {
  const { conversationId, head: previousHash } = state;
  const rosterVersion = state.version + 1n;
  const disagreement = disagreementOfChange(change, { conversationId, rosterVersion, previousHash, ...wanted });
  if (disagreement) throw rosterChangeMismatch(disagreement.field, disagreement.description);
  const entry = create(RosterEntrySchema, { rosterVersion, signedChange: signed });
  entry.hash = rosterEntryHash({ conversationId, previousHash }, entry);
  try {
    return foldRoster(state, entry);
  } catch (error) {
    if (!(error instanceof RosterError)) throw error;
    const field = (['added', 'removed', 'roles'] as const).find((list) => change[list].length > 0) ?? 'permissions';
    throw rosterChangeMismatch(field, `does not follow from the roster (${error.problem})`);
  }
}
