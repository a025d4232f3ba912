import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type ExplainKeyRequest, type ExplainKeyResponseSchema, SessionOperatorService } from '@keytrail/contracts';
import { type Call, type Rpc, refuse, unary, withShareOfTime } from '@keytrail/rpc';
import { pseudonym } from '@keytrail/telemetry';
import { explainKey as explain } from '../../domain/explain-key.ts';
import { findingPage } from '../../domain/findings.ts';
import type { KeyFacts } from '../../domain/key-facts.ts';
import { timelineOf } from '../../domain/key-timeline.ts';
import { findReader } from '../../find-reader.ts';
import { askConversation, type ExplainParts, gatherKeyFacts } from '../../gather-key-facts.ts';
import { readNewestSessionId } from '../../store/key-facts.ts';
import { findSeenSessions, type SeenSession } from '../../store/operator-sessions.ts';
import { audited } from './audited.ts';
import { sessionView } from './session-view.ts';

const newestEpochs = 20;

/** Why a device can or cannot read a session. Who asked about whom is audited before anything is shown. */
export function explainKey(parts: ExplainParts): Rpc {
  return unary(SessionOperatorService.method.explainKey, {
    allow: ['operator'],
    async handle(request, call) {
      const { conversationId, userId, deviceId } = request;
      const about = {
        action: 'explain_key',
        conversationId,
        userId: userId || undefined,
        deviceId: deviceId || undefined,
        note: request.sessionId && `session ${request.sessionId}`,
      };
      return audited(parts.db, call, about, async (recordDone) => {
        const facts = await factsOf(parts, request, call);
        const [seen] = facts.session ? await findSeenSessions(parts.db, facts, undefined, 1) : [];
        await recordDone(parts.db, { ...facts.reader, note: `session ${facts.sessionId}` });
        return explanation(facts, seen);
      });
    },
  });
}

async function factsOf(parts: ExplainParts, request: ExplainKeyRequest, call: Call): Promise<KeyFacts> {
  const { conversationId } = request;
  const isNamed = request.userId !== '' && request.deviceId !== '' && request.sessionId !== '';
  if (isNamed) return gatherKeyFacts(parts, request, request, call);
  const conversation = await withShareOfTime(1 / 4, () =>
    askConversation(parts.operatorPeers, { conversationId, sessionId: request.sessionId, userId: '' }, call),
  );
  const current = conversation.known ? conversation.value?.currentSessionId : undefined;
  if (request.sessionId === '' && !conversation.known)
    throw refuse(
      'EXPLANATION_INCOMPLETE',
      'which session is the current one could not be found out: name one by its session_id',
      {
        metadata: { peer: 'conversation' },
        retryAfterMs: 1000,
      },
    );
  const sessionId = request.sessionId || current || (await readNewestSessionId(parts.db, conversationId));
  if (!sessionId) throw refuse('NOT_FOUND_OR_NOT_PERMITTED', 'nothing is known of a session of such a conversation');
  const asked = { conversationId, sessionId };
  const reader = await withShareOfTime(1 / 4, () => findReader(parts, asked, request, conversation));
  return gatherKeyFacts(parts, asked, reader, call);
}

function explanation(
  facts: KeyFacts,
  seen: SeenSession | undefined,
): MessageInitShape<typeof ExplainKeyResponseSchema> {
  const { reader, conversation, devices, holders, presence } = facts;
  const record = conversation.known ? conversation.value : undefined;
  const epochs = record?.epochs ?? [];
  const committed = epochs.find(({ sessionId }) => sessionId === facts.sessionId);
  const away = [conversation, devices, holders, presence].flatMap((answer) => (answer.known ? [] : [answer.peer]));
  return {
    device: { userId: reader.userId, deviceId: reader.deviceId },
    userPseudonym: pseudonym(reader.userId),
    devicePseudonym: pseudonym(reader.deviceId),
    readable: facts.readable,
    findings: explain(facts).map((finding) => ({
      code: finding.code,
      summary: finding.summary,
      evidence: { ...finding.evidence },
      remedy: finding.remedy,
      page: findingPage(finding.code),
      explainsMiss: finding.explainsMiss,
    })),
    timeline: timelineOf(facts).map(({ happenedAt, event, source, details, traceId, writerBuild }) => ({
      happenedAt: timestampFromDate(happenedAt),
      event,
      source,
      details: { ...details },
      traceId,
      writerBuild,
    })),
    ...(seen && { session: sessionView(facts.conversationId, seen) }),
    currentEpoch: record?.currentEpoch ?? 0n,
    currentSessionId: record?.currentSessionId ?? '',
    notAsked: [...new Set(away)],
    sessionId: facts.sessionId,
    epoch: (committed ?? facts.session)?.epoch ?? 0n,
    newestEpochs: epochs.slice(0, newestEpochs).map(({ epoch, sessionId }) => ({ epoch, sessionId })),
  };
}
