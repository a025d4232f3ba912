import { timestampMs } from '@bufbuild/protobuf/wkt';
import { type Conversation, ConversationService } from '@keytrail/contracts';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { takeWhileFits } from '../domain/pages.ts';
import type { Parts } from '../parts.ts';
import { type ListPlace, listConversationsOf } from '../store/reads.ts';

const defaultSize = 50;
/** Of all rosters on one page, so that an answer stays within what both wires carry. */
const mostMembersOnPage = 10_000;

/** The caller's conversations, the newest first. A page may be shorter than asked for when rosters are large. */
export function listConversations({ prisma }: Parts): Rpc {
  return unary(ConversationService.method.listConversations, {
    allow: ['device'],
    async handle({ page }, call) {
      const { userId } = deviceCaller(call);
      const size = page?.size || defaultSize;
      const after = page?.token ? placeOf(page.token) : undefined;
      const found = await listConversationsOf(prisma, userId, after, size + 1);
      const conversations = takeWhileFits(found, size, ({ members }) => members.length, mostMembersOnPage);
      const last = conversations.at(-1);
      return { conversations, nextToken: last && conversations.length < found.length ? tokenOf(last) : '' };
    },
  });
}

function tokenOf({ createdAt, conversationId }: Conversation): string {
  const at = createdAt ? timestampMs(createdAt) : 0;
  return Buffer.from(`${at} ${conversationId}`).toString('base64url');
}

/** Milliseconds since 1970 within what a date holds, and the id. */
const tokenForm = /^(\d{1,13}) ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$/;

function placeOf(token: string): ListPlace {
  const parts = tokenForm.exec(Buffer.from(token, 'base64url').toString());
  if (!parts) throw invalidField('page.token', 'must be next_token of the page before');
  return { createdAt: new Date(Number(parts[1])), conversationId: parts[2] ?? '' };
}
