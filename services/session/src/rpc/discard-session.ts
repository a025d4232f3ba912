import { SessionService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { keepTrace } from '@keytrail/telemetry';
import type { Parts } from '../parts.ts';
import { discardSession as discard } from '../store/discarded-sessions.ts';

/** Deletes a candidate that never won its epoch, for good: conversation has made sure of that by its tombstone, and one is kept here against late calls. */
export function discardSession({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionService.method.discardSession, {
    allow: ['service:conversation'],
    async handle({ conversationId, sessionId }, call) {
      keepTrace('session discarded');
      const discarded = await db.transaction((tx) => discard(tx, conversationId, sessionId));
      call.log.info({ conversationId, sessionId, discarded }, 'session discarded');
      return { discarded };
    },
  });
}
