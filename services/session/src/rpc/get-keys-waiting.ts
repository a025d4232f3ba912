import { SessionService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { beginChanges, changeFeedOf, changesAfter } from '@keytrail/storage';
import type { Parts } from '../parts.ts';
import { countKeysWaiting } from '../store/key-changes.ts';
import { readingCursor } from './change-cursors.ts';

/** Tells presence what waits for a device that attaches, in one statement: thousands may attach at once. */
export function getKeysWaiting({ db, config }: Pick<Parts, 'db' | 'config'>): Rpc {
  return unary(SessionService.method.getKeysWaiting, {
    allow: ['service:presence'],
    async handle({ device, cursor }) {
      if (!device) throw new Error('the contract requires a device');
      const waiting = await countKeysWaiting(
        db,
        device,
        readingCursor(() => changesAfter(cursor)),
      );
      const { anew, reset } = beginChanges(cursor, changeFeedOf(waiting), {
        keptMs: config.endedKeyRequestRetentionMs,
      });
      const { key_offers: keyOffers, open_key_requests: openKeyRequests } = waiting;
      // Without a cursor only what stands is told: what ended before is nothing new.
      const changed = anew ? reset || keyOffers + openKeyRequests > 0 : waiting.changed;
      return { keyOffers, openKeyRequests, changed };
    },
  });
}
