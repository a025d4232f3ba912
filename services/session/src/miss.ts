import { fromBinary } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { ConnectError } from '@connectrpc/connect';
import { helpUrl, MissCause, missCauseName, Recovery, RecoverySchema, SessionHeaderSchema } from '@keytrail/contracts';
import { type Call, refuse, refuseMiss } from '@keytrail/rpc';
import type { Queryable } from '@keytrail/storage';
import { attr, count, type Link, linkFromTraceparent, linkToTrace, markMiss, trace } from '@keytrail/telemetry';
import type { DeviceId } from './domain/device.ts';
import {
  type Answer,
  type DeviceFacts,
  type EntitlementFacts,
  type Explanation,
  explainMiss,
  type HolderFacts,
  type Incomplete,
  type StoredSessionFacts,
} from './domain/explain-miss.ts';
import { holderViews, rankedHolders } from './holder-views.ts';
import { askPeers, findDevice, type PeerAnswers, type Peers } from './peers.ts';
import { type LocalFacts, type LocalSession, readLocalFactsOfMany } from './store/miss-facts.ts';

export interface MissParts {
  readonly db: Queryable;
  readonly peers: Peers;
  readonly config: { readonly offerMs: number; readonly waitMs: number; readonly helpBaseUrl: string };
}

/** What is known about a device and a session that it has no key of, or wants another envelope for. */
export interface GatheredFacts {
  readonly local: LocalFacts;
  readonly ranked: readonly DeviceId[];
  readonly answers: PeerAnswers;
}

export interface SessionName {
  readonly conversationId: string;
  readonly sessionId: string;
}

/** Own facts first, in one statement, because they name the holders; then all peers at once. */
export async function gatherFacts(
  parts: MissParts,
  session: SessionName,
  device: DeviceId,
  call: Call,
): Promise<GatheredFacts> {
  const [facts] = await gatherFactsOfMany(parts, [session], device, call);
  if (!facts) throw new Error('one session, one set of facts');
  return facts;
}

/** As gatherFacts, of many sessions: one statement, and the peers are asked once for all. In the order of the sessions. */
export async function gatherFactsOfMany(
  parts: MissParts,
  sessions: readonly SessionName[],
  device: DeviceId,
  call: Call,
): Promise<GatheredFacts[]> {
  const known = (await readLocalFactsOfMany(parts.db, sessions, device)).map((local, place) => ({
    local,
    ranked: local.session ? rankedHolders({ ...local, initiator: local.session.initiator }, device, '') : [],
    session: sessions[place] as SessionName,
  }));
  const asked = known.map(({ session, ranked }) => ({
    conversationId: session.conversationId,
    sessionId: session.sessionId,
    ranked,
  }));
  const answers = await askPeers(parts.peers, device, asked, call.log);
  return known.map(({ local, ranked }, place) => ({ local, ranked, answers: answers[place] as PeerAnswers }));
}

/** Why the device has no key, as though it had no envelope. */
export function explain(
  parts: MissParts,
  session: SessionName,
  device: DeviceId,
  gathered: GatheredFacts,
): Explanation | Incomplete {
  const { local, ranked, answers } = gathered;
  return explainWith(parts, session, device, gathered, holderFacts(local, ranked, answers));
}

/** As explain, of the cause alone, which does not rest on who could help. Undefined when a peer that decides it could not be asked. */
export function explainCause(
  parts: MissParts,
  session: SessionName,
  device: DeviceId,
  gathered: GatheredFacts,
): Pick<Explanation, 'cause' | 'evidence'> | undefined {
  const told = explainWith(parts, session, device, gathered, { known: true, value: { eligible: 0, online: 0 } });
  if (told.kind === 'incomplete') return undefined;
  const { holders: _holders, holders_online: _online, ...evidence } = told.evidence;
  return { cause: told.cause, evidence };
}

function explainWith(
  parts: MissParts,
  { conversationId, sessionId }: SessionName,
  device: DeviceId,
  { local, answers }: GatheredFacts,
  holders: Answer<HolderFacts>,
): Explanation | Incomplete {
  return explainMiss(
    {
      conversationId,
      sessionId,
      device,
      stored: local.session && storedFacts(local.session, device.userId),
      locallyRevokedAt: local.revokedAt,
      openRequest: local.openRequest,
      entitlement: entitlementFacts(answers, device.userId),
      registration: registrationFacts(answers, device),
      holders,
    },
    { offeredRetryMs: parts.config.offerMs, waitingRetryMs: parts.config.waitMs },
  );
}

/** The refusal that tells the miss, having recorded it. */
export function refuseExplained(
  session: SessionName,
  explanation: Explanation | Incomplete,
  { local, answers }: GatheredFacts,
  config: MissParts['config'],
  call: Call,
): ConnectError {
  const conversationTraceId = answers.entitlement.known ? answers.entitlement.value.lastWriteTraceId : '';
  recordMiss(session, explanation, linksToWrites(local.session?.createdTraceparent ?? '', conversationTraceId));
  if (explanation.kind === 'incomplete')
    return refuse('EXPLANATION_INCOMPLETE', 'the miss could not be explained, as a peer could not be asked', {
      metadata: { peer: explanation.peer },
      retryAfterMs: 1000,
    });
  if (explanation.cause === MissCause.NOT_FOUND_OR_NOT_PERMITTED)
    return refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such thing, or it is not yours to know');
  return refuseMiss({
    cause: explanation.cause,
    recovery: explanation.recovery,
    remedy: explanation.remedy,
    evidence: { ...explanation.evidence },
    keyRequestId: explanation.keyRequestId,
    retryAfterMs: explanation.retryAfterMs,
    traceId: call.traceId,
    causedByTraceId: local.session?.createdTraceId || conversationTraceId,
    helpUrl: helpUrl(missCauseName(explanation.cause), config.helpBaseUrl),
  });
}

/**
 * Counts the miss and marks the active span, with what `keytrail explain --trace` needs besides the pseudonyms of the caller; of several
 * misses in one call that is the last. One without an explanation is a miss too: its cause is that there is none.
 */
function recordMiss(
  { conversationId, sessionId }: SessionName,
  explanation: Explanation | Incomplete,
  links: readonly Link[],
): void {
  const explained = explanation.kind === 'miss';
  const cause = explained ? missCauseName(explanation.cause) : 'EXPLANATION_INCOMPLETE';
  const recovery = RecoverySchema.value[explained ? explanation.recovery : Recovery.UNSPECIFIED]?.localName ?? '';
  count('misses', 1, { [attr.missCause]: cause, [attr.recovery]: recovery });
  markMiss(cause);
  const span = trace.getActiveSpan();
  span?.setAttributes({
    [attr.recovery]: recovery,
    [attr.conversationId]: conversationId,
    [attr.sessionId]: sessionId,
  });
  for (const link of links) span?.addLink(link);
}

/** The last writes that the miss may come from: of the session, and of the conversation where that is another trace. */
function linksToWrites(sessionTraceparent: string, conversationTraceId: string): Link[] {
  const session = linkFromTraceparent(sessionTraceparent, { [attr.link]: 'session_written' });
  const ofConversation = conversationTraceId !== session?.context.traceId;
  const conversation = ofConversation
    ? linkToTrace(conversationTraceId, { [attr.link]: 'conversation_written' })
    : undefined;
  return [session, conversation].filter((link) => link !== undefined);
}

function storedFacts(session: LocalSession, userId: string): StoredSessionFacts {
  return { ...session, hasHeader: session.header !== undefined, pinnedVersion: pinnedVersion(session, userId) };
}

function pinnedVersion({ header }: LocalSession, userId: string): bigint | undefined {
  if (header === undefined) return undefined;
  try {
    return fromBinary(SessionHeaderSchema, header).deviceLists.find((list) => list.userId === userId)?.version;
  } catch {
    // A damaged row still gets its miss explained.
    return undefined;
  }
}

function entitlementFacts({ entitlement }: PeerAnswers, userId: string): Answer<EntitlementFacts> {
  if (!entitlement.known) return entitlement;
  const about = entitlement.value;
  const own = about.entitlements.find((entry) => entry.userId === userId);
  return {
    known: true,
    value: {
      ...about,
      everMember: own?.everMember ?? false,
      memberNow: own?.memberNow ?? false,
      entitled: own?.entitled ?? false,
      memberships: own?.memberships ?? [],
    },
  };
}

function registrationFacts({ deviceLists }: PeerAnswers, device: DeviceId): Answer<DeviceFacts> {
  if (!deviceLists.known) return deviceLists;
  const found = findDevice(deviceLists.value, device);
  if (!found) return { known: true, value: { registered: false } };
  return {
    known: true,
    value: {
      registered: true,
      addedInVersion: found.addedInVersion,
      addedAt: found.addedAt ? timestampDate(found.addedAt) : new Date(0),
      revokedAt: found.revokedAt && timestampDate(found.revokedAt),
    },
  };
}

/** Who could help, as far as the peers that know it could be asked. */
export function holderFacts(local: LocalFacts, ranked: readonly DeviceId[], answers: PeerAnswers): Answer<HolderFacts> {
  const { entitlement, deviceLists, online } = answers;
  if (!entitlement.known) return entitlement;
  if (!deviceLists.known) return deviceLists;
  if (!online.known) return online;
  const views = holderViews(ranked, {
    entitlement: entitlement.value,
    deviceLists: deviceLists.value,
    online: online.value,
    rejected: local.rejected,
    offers: [],
  });
  return { known: true, value: { eligible: views.length, online: views.filter((view) => view.online).length } };
}
