import { SessionService } from '@keytrail/contracts';
import { deviceCaller, type Rpc, unary } from '@keytrail/rpc';
import { beginChanges, endChanges, readChangeFeed } from '@keytrail/storage';
import type { Parts } from '../parts.ts';
import { listKeyChanges as listChanges } from '../store/key-changes.ts';
import { readingCursor } from './change-cursors.ts';
import { keyRequestMessage } from './messages.ts';

const defaultLimit = 100;

/** What changed about the calling device's requests and the offers to it. A cursor from before what is forgotten begins anew. */
export function listKeyChanges({ db, config }: Pick<Parts, 'db' | 'config'>): Rpc {
  return unary(SessionService.method.listKeyChanges, {
    allow: ['device'],
    async handle({ cursor, limit }, call) {
      const device = deviceCaller(call);
      const most = limit || defaultLimit;
      const feed = await readChangeFeed(db);
      const keptMs = config.endedKeyRequestRetentionMs;
      const page = readingCursor(() => beginChanges(cursor, feed, { keptMs }));
      const found = await listChanges(db, device, page, most + 1);
      const shown = found.slice(0, most);
      const more = found.length > most;
      const message = ({ request }: (typeof shown)[number]) => keyRequestMessage(request);
      return {
        requests: shown.filter(({ offered }) => !offered).map(message),
        offers: shown.filter(({ offered }) => offered).map(message),
        nextCursor: endChanges(page, more ? shown.at(-1)?.at : undefined),
        more,
        reset: page.reset,
      };
    },
  });
}
