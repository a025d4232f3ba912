import { SessionOperatorService } from '@keytrail/contracts';
import { invalidField, type Rpc, unary } from '@keytrail/rpc';
import type { Parts } from '../../parts.ts';
import { findSeenSessions, type SessionPlace } from '../../store/operator-sessions.ts';
import { audited } from './audited.ts';
import { sessionView } from './session-view.ts';

const defaultPageSize = 50;

/** The sessions of a conversation with what is there of each. Works on damaged rows, which is what it is for. */
export function findSessions({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(SessionOperatorService.method.findSessions, {
    allow: ['operator'],
    async handle({ conversationId, sessionId, page }, call) {
      const about = { action: 'find_sessions', conversationId, note: sessionId };
      return audited(db, call, about, async (recordDone) => {
        const size = page?.size || defaultPageSize;
        const found = await findSeenSessions(db, { conversationId, sessionId }, readPlace(page?.token ?? ''), size + 1);
        await recordDone(db);
        const shown = found.slice(0, size);
        const last = shown.at(-1);
        return {
          sessions: shown.map((session) => sessionView(conversationId, session)),
          nextToken: found.length > size && last ? writePlace(last) : '',
        };
      });
    },
  });
}

function writePlace({ epoch, sessionId }: SessionPlace): string {
  return Buffer.from(`${epoch} ${sessionId}`).toString('base64url');
}

function readPlace(token: string): SessionPlace | undefined {
  if (token === '') return undefined;
  const [, epoch, sessionId] =
    /^(\d{1,18}) ([A-Za-z0-9._:-]{1,128})$/.exec(Buffer.from(token, 'base64url').toString()) ?? [];
  if (epoch === undefined || sessionId === undefined)
    throw invalidField('page.token', 'must be next_token of the page before');
  return { epoch: BigInt(epoch), sessionId };
}
