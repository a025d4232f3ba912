import { ConversationService } from '@keytrail/contracts';
import { invalidField, type Rpc, refuse, unary } from '@keytrail/rpc';
import type { Parts } from '../parts.ts';
import { readEntitlements } from '../store/entitlements.ts';
import { entitlementAnswer } from './check-entitlement.ts';

/** A user counts once for each session. Part of the contract. */
const usersAtMost = 10_000;

/** CheckEntitlement for many sessions: what a service needs that handles many key requests at once. */
export function checkEntitlements({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(ConversationService.method.checkEntitlements, {
    allow: ['service'],
    async handle({ checks }) {
      const sessions = new Set<string>();
      for (const [place, { conversationId, sessionId }] of checks.entries()) {
        const session = `${conversationId} ${sessionId}`;
        if (sessions.has(session)) throw invalidField(`checks[${place}]`, 'must be another session than those before');
        sessions.add(session);
      }
      if (checks.reduce((users, { userIds }) => users + userIds.length, 0) > usersAtMost)
        throw refuse('LIMIT_EXCEEDED', `more than ${usersAtMost} users`, {
          metadata: { limit: String(usersAtMost), scope: 'users in one call' },
        });
      const rows = await readEntitlements(db, checks);
      return {
        answers: checks.map(({ userIds }, place) => entitlementAnswer(userIds, rows[place])),
      };
    },
  });
}
