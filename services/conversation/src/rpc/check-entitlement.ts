import type { MessageInitShape } from '@bufbuild/protobuf';
import { type CheckEntitlementResponseSchema, ConversationService } from '@keytrail/contracts';
import { type Rpc, unary } from '@keytrail/rpc';
import { isEntitled, isMemberNow } from '../domain/entitlement.ts';
import type { Parts } from '../parts.ts';
import { type EntitlementRows, readEntitlements } from '../store/entitlements.ts';

/** Tells other services what users may have of a session. An epoch that is not committed entitles nobody. */
export function checkEntitlement({ db }: Parts): Rpc {
  return unary(ConversationService.method.checkEntitlement, {
    allow: ['service'],
    async handle(check) {
      const [rows] = await readEntitlements(db, [check]);
      return entitlementAnswer(check.userIds, rows);
    },
  });
}

export function entitlementAnswer(
  userIds: readonly string[],
  { conversation, spansOf }: EntitlementRows = { conversation: undefined, spansOf: () => [] },
): MessageInitShape<typeof CheckEntitlementResponseSchema> {
  const epoch = conversation?.askedEpoch;
  return {
    conversationKnown: conversation !== undefined,
    sessionCommitted: epoch !== undefined,
    epoch: epoch ?? 0n,
    ...(conversation && {
      currentEpoch: conversation.epoch,
      currentSessionId: conversation.sessionId,
      historyPolicy: conversation.historyPolicy,
      lastWriteTraceId: conversation.lastWriteTraceId,
    }),
    entitlements: userIds.map((userId) => {
      const spans = spansOf(userId);
      return {
        userId,
        everMember: spans.length > 0,
        entitled:
          conversation !== undefined && epoch !== undefined && isEntitled(spans, conversation.historyPolicy, epoch),
        memberNow: isMemberNow(spans),
        memberships: spans.map(({ fromEpoch, toEpoch }) => ({ fromEpoch, toEpoch: toEpoch ?? 0n })),
      };
    }),
  };
}
