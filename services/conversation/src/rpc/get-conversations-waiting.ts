import { ConversationService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { beginChanges, ChangeCursorMalformed, readChangeFeed } from '@keytrail/storage';
import type { Parts } from '../parts.ts';
import { readChanges } from '../store/changes.ts';
import { revokedSince } from '../store/revoked-devices.ts';
import { rotationsDueOf } from '../store/rotations.ts';

const mostRotations = 100;

/** What waits for a device that attaches; nothing for one that is revoked. */
export function getConversationsWaiting({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(ConversationService.method.getConversationsWaiting, {
    allow: ['service:presence'],
    async handle({ device, cursor }) {
      if (!device || (await revokedSince(db, device))) return {};
      const { userId } = device;
      const [due, changed] = await Promise.all([
        rotationsDueOf(db, userId, mostRotations + 1),
        hasChanged(db, userId, cursor),
      ]);
      return {
        rotationsDue: due.slice(0, mostRotations),
        moreRotationsDue: due.length > mostRotations,
        changed,
      };
    },
  });
}

async function hasChanged(db: Parts['db'], userId: string, cursor: string): Promise<boolean> {
  try {
    const page = beginChanges(cursor, await readChangeFeed(db));
    return page.reset || (await readChanges(db, userId, page, 1)).length > 0;
  } catch (error) {
    // A greeting is not kept back by it: ListChanges tells the device what is wrong with its cursor.
    if (error instanceof ChangeCursorMalformed) return true;
    throw error;
  }
}
