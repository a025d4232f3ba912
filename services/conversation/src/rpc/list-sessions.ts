import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { ConversationService } from '@keytrail/contracts';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { isMemberNow, readableEpochs } from '../domain/entitlement.ts';
import type { Parts } from '../parts.ts';
import { notFoundOrNotPermitted } from '../refusals.ts';
import { historyPoliciesOf } from '../store/history-policies.ts';
import { conversationsEverOf, readSessions, type SessionPlaceInList } from '../store/user-sessions.ts';

const defaultSize = 50;

/** The sessions that the caller's user is entitled to, those of memberships that ended too. The token names the last session of a page. */
export function listSessions({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(ConversationService.method.listSessions, {
    allow: ['device'],
    async handle({ conversationId, currentOnly, page }, call) {
      const { userId } = deviceCaller(call);
      const size = page?.size || defaultSize;
      const after = page?.token ? placeOf(page.token) : undefined;
      const conversations = await conversationsEverOf(db, userId, conversationId || undefined);
      if (conversationId && conversations.length === 0) throw notFoundOrNotPermitted();
      const policies = await historyPoliciesOf(
        db,
        conversations.map((each) => each.conversationId),
      );
      const ranges = conversations.flatMap(({ conversationId, spans, epoch }) => {
        // None is the present one for who left: that one is not any more would tell of a rotation afterwards.
        const current = isMemberNow(spans) ? epoch : 0n;
        if (currentOnly && current === 0n) return [];
        return readableEpochs(spans, policies(conversationId))
          .map(({ first, last = epoch }) => ({
            conversationId,
            current,
            first: currentOnly && first < epoch ? epoch : first,
            last,
          }))
          .filter(({ first, last }) => first <= last);
      });
      const found = await readSessions(db, ranges, after, size + 1);
      const sessions = found.slice(0, size);
      const last = sessions.at(-1);
      return {
        sessions: sessions.map(({ committedAtUs, ...session }) => ({
          ...session,
          committedAt: timestampFromMs(Number(committedAtUs / 1000n)),
        })),
        nextToken: last && found.length > size ? tokenOf(last) : '',
      };
    },
  });
}

function tokenOf({ committedAtUs, conversationId, epoch }: SessionPlaceInList): string {
  return Buffer.from(`${committedAtUs} ${conversationId} ${epoch}`).toString('base64url');
}

/** Microseconds since 1970, the conversation, and the epoch within what the database holds. */
const tokenForm = /^(\d{1,18}) ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) (\d{1,18})$/;

function placeOf(token: string): SessionPlaceInList {
  const parts = tokenForm.exec(Buffer.from(token, 'base64url').toString());
  if (!parts) throw invalidField('page.token', 'must be next_token of the page before');
  return { committedAtUs: BigInt(parts[1] ?? ''), conversationId: parts[2] ?? '', epoch: BigInt(parts[3] ?? '') };
}
