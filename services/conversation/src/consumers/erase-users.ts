import { ConversationKind, MemberRole } from '@keytrail/contracts';
import { withAdmin } from '@keytrail/crypto';
import { consumers, type ErasedBatch, type Erasing, type EventBus, startErasing, userErased } from '@keytrail/events';
import type { Transaction } from '@keytrail/storage';
import { keepTrace, type Logger } from '@keytrail/telemetry';
import { announceChange } from '../announcements.ts';
import type { ConversationConfig } from '../config.ts';
import { inRosterOrder, promotedIn, rotationDueAfter } from '../domain/roster.ts';
import type { Parts } from '../parts.ts';
import { advanceToRoster, lockConversation, readConversation, readRoster } from '../store/conversations.ts';
import {
  blankCandidatesOf,
  blankMessages,
  closeConversation,
  countEpochsOf,
  countRevokedDevices,
  countRosterEntriesOf,
  deleteMemberships,
  deleteRequestIdsOf,
  deleteRotationAsksOf,
  forgetRevokedDevices,
  nextConversationToForget,
  nextConversationToLeave,
} from '../store/erasures.ts';
import { closeMemberships, setRole } from '../store/memberships.ts';
import { addRosterErasure } from '../store/roster-log.ts';
import { writerOf } from '../writer.ts';

type ErasingParts = Pick<Parts, 'db' | 'writerBuild' | 'atFaultPoint'> & {
  readonly bus: EventBus;
  readonly log: Logger;
  readonly config: ConversationConfig;
};

/**
 * Erases users: they leave every roster, what they sent is blanked, and that they were members is forgotten. DIRECT conversations are closed.
 * The epochs that they made stay, as the chain of headers that others verify goes over them.
 */
export function eraseUsers(parts: ErasingParts): Erasing {
  const { bus, db, log, config } = parts;
  const most = config.erasureBatch;
  return startErasing({
    bus,
    db,
    log,
    service: 'conversation',
    consumer: consumers.conversationErasure,
    reply: userErased.conversation,
    everyMs: config.erasureRoundMs,
    rememberMs: config.erasedUserRetentionMs,
    forgotten: forgetRevokedDevices,
    parts: [
      (tx, { userId }) => leaveOne(parts, tx, userId),
      async (tx, { userId }) => {
        const batch = await forgetInOne(tx, userId, most);
        await parts.atFaultPoint('conversation.during-erasure');
        return batch;
      },
      async (tx, { userId }) => ({
        counts: { candidates: { erased: await blankCandidatesOf(tx, userId) } },
        more: false,
      }),
      async (tx, { userId }) => ({
        counts: { rotation_asks: { erased: await deleteRotationAsksOf(tx, userId) } },
        more: false,
      }),
      async (tx, { userId }) => {
        const erased = await deleteRequestIdsOf(tx, userId, most);
        return { counts: { request_ids: { erased } }, more: erased === most };
      },
    ],
    atLast: async (tx, { userId }) => ({ revoked_devices: { kept: await countRevokedDevices(tx, userId) } }),
  });
}

/** As if an admin had removed the user; who knew the group's key must not read on. Of a DIRECT conversation nobody writes on. */
async function leaveOne(parts: ErasingParts, tx: Transaction, userId: string): Promise<ErasedBatch> {
  const conversationId = await nextConversationToLeave(tx, userId);
  const current = conversationId && (await lockConversation(tx, conversationId));
  if (!current) return { counts: { conversations: {} }, more: false };
  const roster = await readRoster(tx, conversationId);
  // Removed by somebody else between the two statements.
  if (!roster.some((member) => member.userId === userId)) return { counts: {}, more: true };

  keepTrace('members_removed');
  const by = writerOf(parts);
  const direct = current.kind === ConversationKind.DIRECT;
  const remaining = roster.filter((member) => member.userId !== userId);
  const successor = promotedIn(roster, withAdmin(inRosterOrder(remaining)));
  // First: a DIRECT conversation has its two members until it is closed, and a roster always has an admin.
  if (successor) await setRole(tx, conversationId, successor.userId, MemberRole.ADMIN);
  if (direct) await closeConversation(tx, conversationId, by);
  const rotationDue = direct
    ? current.rotationDue
    : rotationDueAfter(current.rotationDue, 'removed', current.historyPolicy);
  const minSendEpoch = direct ? current.minSendEpoch : current.epoch + 1n;
  const version = await advanceToRoster(tx, current, { rotationDue, minSendEpoch }, by);
  if (version === undefined) throw new Error('a locked conversation moved');
  const place = { conversationId, rosterVersion: version, previousHash: current.rosterHead };
  await addRosterErasure(tx, place, userId, by);
  await closeMemberships(tx, conversationId, current.epoch, version, [userId]);
  await announceChange(tx, await readConversation(tx, conversationId), {
    notify: remaining.map((member) => member.userId),
    rotationBecameDue: rotationDue !== current.rotationDue,
  });
  return { counts: { conversations: { erased: 1 } }, more: true };
}

/** The memberships of a conversation go once nothing in it is the user's any more: they are what says where to look. */
async function forgetInOne(tx: Transaction, userId: string, most: number): Promise<ErasedBatch> {
  const conversationId = await nextConversationToForget(tx, userId);
  if (conversationId === undefined)
    return { counts: { messages: {}, memberships: {}, epochs: {}, roster_log: {} }, more: false };
  const messages = await blankMessages(tx, conversationId, userId, most);
  if (messages === most) return { counts: { messages: { erased: messages } }, more: true };
  const epochs = await countEpochsOf(tx, conversationId, userId);
  const entries = await countRosterEntriesOf(tx, conversationId, userId);
  const memberships = await deleteMemberships(tx, conversationId, userId);
  return {
    counts: {
      messages: { erased: messages },
      memberships: { erased: memberships },
      epochs: { kept: epochs },
      roster_log: { kept: entries },
    },
    more: true,
  };
}
