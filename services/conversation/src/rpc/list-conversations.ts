import { timestampDate } from '@bufbuild/protobuf/wkt';
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
  const at = createdAt ? timestampDate(createdAt).toISOString() : '';
  return Buffer.from(`${at} ${conversationId}`).toString('base64url');
}

function placeOf(token: string): ListPlace {
  const [at = '', conversationId = ''] = Buffer.from(token, 'base64url').toString().split(' ');
  const createdAt = new Date(at);
  if (Number.isNaN(createdAt.getTime()) || !uuidForm.test(conversationId))
    throw invalidField('page.token', 'is not the next_token of a page before');
  return { createdAt, conversationId };
}

const uuidForm = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
