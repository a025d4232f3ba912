import type { DescEnumValue, MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import {
  ConversationKindSchema,
  ConversationOperatorService,
  type DescribeConversationResponseSchema,
  type EpochViewSchema,
  HistoryPolicySchema,
  MemberRoleSchema,
  type MembershipViewSchema,
  RotationDueReasonSchema,
  type SessionStandingViewSchema,
} from '@keytrail/contracts';
import { audited } from '@keytrail/diagnosis/audited';
import { type Rpc, unary } from '@keytrail/rpc';
import type { Queryable } from '@keytrail/storage';
import { pseudonym } from '@keytrail/telemetry';
import type { Parts } from '../../parts.ts';
import { conversationUnknown } from '../../refusals.ts';
import { recordAudit } from '../../store/audit-log.ts';
import {
  listEpochGaps,
  listSeenEpochs,
  listSeenMemberships,
  readSeenConversation,
  readSeenStanding,
  type SeenConversation,
  type SeenEpoch,
  type SeenMembership,
  type SeenStanding,
} from '../../store/operator-view.ts';

const mostMemberships = 2_000;
const mostGaps = 20;
const defaultEpochs = 20;

/** A conversation with its roster's history and its epochs, also where rows of it are damaged. */
export function describeConversation({ db }: Pick<Parts, 'db'>): Rpc {
  return unary(ConversationOperatorService.method.describeConversation, {
    allow: ['operator', 'service:session'],
    handle(request, call) {
      const { conversationId, userId } = request;
      const about = { action: 'describe_conversation', conversationId, userId: userId || undefined, note: '' };
      return audited(call, { db, record: recordAudit, about }, async (recordDone) => {
        const described = await describe(db, request);
        if (!described) throw conversationUnknown();
        await recordDone(db);
        return described;
      });
    },
  });
}

interface Asked {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly userId: string;
  readonly epochsMax: number;
}

async function describe(
  db: Queryable,
  { conversationId, sessionId, userId, epochsMax }: Asked,
): Promise<MessageInitShape<typeof DescribeConversationResponseSchema> | undefined> {
  const mostEpochs = epochsMax || defaultEpochs;
  const [conversation, standing] = await Promise.all([
    readSeenConversation(db, conversationId),
    sessionId === '' ? undefined : readSeenStanding(db, conversationId, sessionId),
  ]);
  const asked = standing && { askedSession: standingMessage(sessionId, standing) };
  if (!conversation) return asked && { conversationId, ...asked };
  const [memberships, epochs, epochGaps] = await Promise.all([
    listSeenMemberships(db, conversationId, userId, mostMemberships + 1),
    listSeenEpochs(db, conversationId, mostEpochs + 1),
    listEpochGaps(db, conversationId, mostGaps),
  ]);
  return {
    conversationId,
    ...conversationFields(conversation),
    memberships: memberships.slice(0, mostMemberships).map(membershipMessage),
    membershipsMore: memberships.length > mostMemberships,
    epochs: epochs.slice(0, mostEpochs).map(epochMessage),
    epochsMore: epochs.length > mostEpochs,
    epochGaps,
    ...asked,
  };
}

function conversationFields(seen: SeenConversation) {
  return {
    type: nameIn(ConversationKindSchema, seen.kind),
    currentEpoch: seen.epochThere ? seen.epoch : 0n,
    currentSessionId: seen.sessionId,
    rosterVersion: seen.rosterVersion,
    historyPolicy: nameIn(HistoryPolicySchema, seen.historyPolicy),
    rotationDueReason: seen.rotationDue === 0 ? '' : nameIn(RotationDueReasonSchema, seen.rotationDue),
    rotationDueWriterBuild: seen.rotationDueWriterBuild,
    rotationDueTraceId: seen.rotationDueTraceId,
    messages: seen.messages,
    writerBuild: seen.writerBuild,
    traceId: seen.traceId,
    createdAt: timestampFromDate(seen.createdAt),
    ...(seen.rotationDueSince && { rotationDueSince: timestampFromDate(seen.rotationDueSince) }),
    ...(seen.closedAt && { closedAt: timestampFromDate(seen.closedAt) }),
  };
}

function membershipMessage({
  fromEpoch,
  toEpoch,
  joinedAt,
  leftAt,
  role,
  ...seen
}: SeenMembership): MessageInitShape<typeof MembershipViewSchema> {
  return {
    ...seen,
    userPseudonym: pseudonym(seen.userId),
    role: nameIn(MemberRoleSchema, role),
    joinedEpoch: fromEpoch,
    leftEpoch: toEpoch ?? 0n,
    ...(joinedAt && { joinedAt: timestampFromDate(joinedAt) }),
    ...(leftAt && { leftAt: timestampFromDate(leftAt) }),
  };
}

function epochMessage({ committedAt, historyPolicy, ...seen }: SeenEpoch): MessageInitShape<typeof EpochViewSchema> {
  return {
    ...seen,
    historyPolicy: nameIn(HistoryPolicySchema, historyPolicy),
    committedAt: timestampFromDate(committedAt),
  };
}

function standingMessage(
  sessionId: string,
  { epoch, decidedAt, beganAt, ...seen }: SeenStanding,
): MessageInitShape<typeof SessionStandingViewSchema> {
  return {
    sessionId,
    ...seen,
    epoch: epoch ?? 0n,
    ...(decidedAt && { decidedAt: timestampFromDate(decidedAt) }),
    ...(beganAt && { beganAt: timestampFromDate(beganAt) }),
  };
}

/** The name of a number in a row; the number itself, where this build does not know it. */
const nameIn = (of: { readonly value: Readonly<Record<number, DescEnumValue>> }, number: number) =>
  of.value[number]?.localName ?? String(number);
