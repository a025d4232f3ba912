import { create } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  type Conversation,
  type ConversationKind,
  ConversationSchema,
  type HistoryPolicy,
  type MemberRole,
  type RotationDueReason,
} from '@keytrail/contracts';
import type { Prisma, PrismaClient } from './generated/client.ts';

const whole = {
  currentEpoch: { select: { headerHash: true } },
  memberships: {
    where: { toEpoch: null },
    orderBy: { userId: 'asc' },
    select: { userId: true, role: true, fromEpoch: true },
  },
} satisfies Prisma.ConversationInclude;

type WholeRow = Prisma.ConversationGetPayload<{ include: typeof whole }>;

/** Place of a conversation in the list of a user: the newest first. */
export interface ListPlace {
  readonly createdAt: Date;
  readonly conversationId: string;
}

/** A conversation of a current member; undefined for everybody else. */
export async function readConversationOf(
  prisma: PrismaClient,
  conversationId: string,
  userId: string,
): Promise<Conversation | undefined> {
  const row = await prisma.conversation.findFirst({
    where: { conversationId, memberships: { some: { userId, toEpoch: null } } },
    include: whole,
    relationLoadStrategy: 'join',
  });
  return row ? conversationOf(row) : undefined;
}

/** Up to `limit` conversations of a current member, the newest first, after a place. */
export async function listConversationsOf(
  prisma: PrismaClient,
  userId: string,
  after: ListPlace | undefined,
  limit: number,
): Promise<Conversation[]> {
  const rows = await prisma.conversation.findMany({
    where: {
      memberships: { some: { userId, toEpoch: null } },
      ...(after && {
        OR: [
          { createdAt: { lt: after.createdAt } },
          { createdAt: after.createdAt, conversationId: { lt: after.conversationId } },
        ],
      }),
    },
    orderBy: [{ createdAt: 'desc' }, { conversationId: 'desc' }],
    take: limit,
    include: whole,
    relationLoadStrategy: 'join',
  });
  return rows.map(conversationOf);
}

// Numbers of the contract's enums; the database checks their ranges.
function conversationOf(row: WholeRow): Conversation {
  return create(ConversationSchema, {
    conversationId: row.conversationId,
    kind: row.kind as ConversationKind,
    epoch: row.epoch,
    sessionId: row.sessionId,
    rosterVersion: row.rosterVersion,
    rosterHead: row.rosterHead,
    permissions: {
      addMembers: row.mayAdd as MemberRole,
      removeMembers: row.mayRemove as MemberRole,
      changePolicy: row.mayChangePolicy as MemberRole,
    },
    members: row.memberships.map(({ userId, role, fromEpoch }) => ({ userId, role: role as MemberRole, fromEpoch })),
    historyPolicy: row.historyPolicy as HistoryPolicy,
    rotationDue: row.rotationDue as RotationDueReason,
    headerHash: row.currentEpoch.headerHash,
    lastSequence: row.lastSequence,
    createdAt: timestampFromDate(row.createdAt),
    ...(row.closedAt && { closedAt: timestampFromDate(row.closedAt) }),
  });
}
