import { ConversationService } from '@keytrail/contracts';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { beginChanges, ChangeCursorMalformed, type ChangePage, endChanges, readChangeFeed } from '@keytrail/storage';
import type { Parts } from '../parts.ts';
import { readChanges } from '../store/changes.ts';

const defaultLimit = 100;

/** Where the caller's conversations stand that changed since a cursor. Two statements, however many there are. */
export function listChanges({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(ConversationService.method.listChanges, {
    allow: ['device'],
    async handle({ cursor, limit }, call) {
      const { userId } = deviceCaller(call);
      const page = pageOf(cursor, await readChangeFeed(db));
      const most = limit || defaultLimit;
      const found = await readChanges(db, userId, page, most + 1);
      const changes = found.slice(0, most);
      const more = found.length > most;
      const last = changes.at(-1);
      return {
        changes: changes.map(({ changedXid: _xid, ...change }) => change),
        nextCursor: endChanges(page, more && last ? { xid: last.changedXid, key: last.conversationId } : undefined),
        more,
        reset: page.reset,
      };
    },
  });
}

function pageOf(cursor: string, feed: Parameters<typeof beginChanges>[1]): ChangePage {
  try {
    return beginChanges(cursor, feed);
  } catch (error) {
    if (error instanceof ChangeCursorMalformed)
      throw invalidField('cursor', 'must be next_cursor of an earlier answer');
    throw error;
  }
}
