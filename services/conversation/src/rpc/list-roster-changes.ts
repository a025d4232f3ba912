import { ConversationService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { lastReadableRoster, readRosterEntries } from '../store/roster-log.ts';

const defaultLimit = 100;
/** Of signed changes on one page, so that an answer stays within what both wires carry. */
const mostPageBytes = 1024 * 1024;

/** Pages through a roster's log; who has left reads it up to the change that ended the membership, to verify the sessions of its time. */
export function listRosterChanges({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(ConversationService.method.listRosterChanges, {
    allow: ['device'],
    async handle({ conversationId, afterVersion, limit }, call) {
      const { userId } = deviceCaller(call);
      const upTo = await lastReadableRoster(db, conversationId, userId);
      if (upTo === undefined) throw notFoundOrNotPermitted();
      return readRosterEntries(db, conversationId, { after: afterVersion, upTo }, limit || defaultLimit, mostPageBytes);
    },
  });
}
