import { type HistoryPolicy, HistoryPolicySchema, MissCause, Recovery, Remedy } from '@keytrail/contracts';
import type { DeviceId } from './device.ts';

export type PeerName = 'conversation' | 'identity-keys' | 'presence';

/** What a peer answered, or that it could not be asked. */
export type Answer<T> =
  | { readonly known: true; readonly value: T }
  | { readonly known: false; readonly peer: PeerName };

/** What conversation knows about the caller's user and the session. */
export interface EntitlementFacts {
  readonly conversationKnown: boolean;
  readonly sessionCommitted: boolean;
  readonly epoch: bigint;
  readonly currentEpoch: bigint;
  readonly currentSessionId: string;
  readonly historyPolicy: HistoryPolicy;
  readonly everMember: boolean;
  readonly memberNow: boolean;
  readonly entitled: boolean;
  /** Oldest first; `toEpoch` 0n while it lasts. */
  readonly memberships: readonly { readonly fromEpoch: bigint; readonly toEpoch: bigint }[];
}

/** What identity-keys knows about the calling device. */
export type DeviceFacts =
  | { readonly registered: false }
  | {
      readonly registered: true;
      readonly addedInVersion: bigint;
      readonly addedAt: Date;
      readonly revokedAt: Date | undefined;
    };

/** What session's own database knows about the session. */
export interface StoredSessionFacts {
  readonly imported: boolean;
  readonly epoch: bigint;
  readonly initiator: DeviceId;
  readonly hasEphemeralKey: boolean;
  readonly hasIdentityKey: boolean;
  readonly envelopesPresent: number;
  readonly envelopesExpected: number;
  readonly writerBuild: string;
  readonly createdAt: Date;
  /** Version of the caller's device list in the header; undefined when the header pins none for this user, or there is no header. */
  readonly pinnedVersion: bigint | undefined;
  readonly hasHeader: boolean;
  /** Name of the WithheldReason, when the initiator withheld the key from the calling device. */
  readonly withheldReason: string | undefined;
}

export interface OpenRequestFacts {
  readonly keyRequestId: string;
  readonly state: 'WAITING_FOR_HOLDER' | 'OFFERED';
}

/** How many devices could help, and how many of them are online. */
export interface HolderFacts {
  readonly eligible: number;
  readonly online: number;
}

export interface MissFacts {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly device: DeviceId;
  readonly stored: StoredSessionFacts | undefined;
  /** From session's own list of revoked devices. */
  readonly locallyRevokedAt: Date | undefined;
  readonly openRequest: OpenRequestFacts | undefined;
  readonly entitlement: Answer<EntitlementFacts>;
  readonly registration: Answer<DeviceFacts>;
  readonly holders: Answer<HolderFacts>;
}

export interface Explanation {
  readonly kind: 'miss';
  readonly cause: MissCause;
  readonly recovery: Recovery;
  readonly remedy: Remedy;
  readonly evidence: Readonly<Record<string, string>>;
  readonly keyRequestId: string;
  readonly retryAfterMs: number;
}

/** The answer depends on a peer that could not be asked. */
export interface Incomplete {
  readonly kind: 'incomplete';
  readonly peer: PeerName;
}

export interface RetryHints {
  readonly offeredRetryMs: number;
  readonly waitingRetryMs: number;
}

/** The causes with which a device has no right to the key, or there is no key: RequestKey is refused with them. */
const refusedCauses: ReadonlySet<MissCause> = new Set([
  MissCause.NOT_FOUND_OR_NOT_PERMITTED,
  MissCause.SESSION_UNKNOWN,
  MissCause.NOT_A_MEMBER_AT_EPOCH,
  MissCause.HISTORY_NOT_SHARED,
  MissCause.DEVICE_UNKNOWN,
  MissCause.DEVICE_REVOKED,
]);

export function mayRequestKey(cause: MissCause): boolean {
  return !refusedCauses.has(cause);
}

/**
 * Names the cause of a miss by the precedence of docs/reasons/README.md. Total: any facts give an explanation, or name the peer
 * without whose answer the first rule in question cannot be decided. A rule that is decided by what is known does not wait for the rest.
 */
export function explainMiss(facts: MissFacts, hints: RetryHints): Explanation | Incomplete {
  if (!facts.entitlement.known) return { kind: 'incomplete', peer: facts.entitlement.peer };
  const entitlement = facts.entitlement.value;
  const { stored } = facts;

  if (!entitlement.conversationKnown || !entitlement.everMember) return strangerAnswer;

  if (!entitlement.sessionCommitted || stored === undefined) {
    const current: Record<string, string> = entitlement.memberNow
      ? { current_epoch: String(entitlement.currentEpoch), current_session_id: entitlement.currentSessionId }
      : {};
    return final(facts, MissCause.SESSION_UNKNOWN, {
      recovery: Recovery.NO_HOLDER_EXISTS,
      // Committed there but not stored here: only a new session helps.
      remedy: entitlement.sessionCommitted ? Remedy.REQUEST_ROTATION : Remedy.REFRESH_CONVERSATION,
      evidence: { ...current, session_committed: String(entitlement.sessionCommitted) },
    });
  }

  if (!entitlement.entitled) return explainMembership(facts, entitlement, stored.epoch);

  if (facts.locallyRevokedAt !== undefined) return revoked(facts, facts.locallyRevokedAt);
  if (!facts.registration.known) return { kind: 'incomplete', peer: facts.registration.peer };
  const registration = facts.registration.value;
  if (!registration.registered)
    return final(facts, MissCause.DEVICE_UNKNOWN, {
      remedy: Remedy.REGISTER_DEVICE,
      evidence: { device_id: facts.device.deviceId },
    });
  if (registration.revokedAt !== undefined) return revoked(facts, registration.revokedAt);

  const written = { writer_build: stored.writerBuild, session_created_at: stored.createdAt.toISOString() };
  if (!stored.hasEphemeralKey) return recoverable(facts, MissCause.INITIATOR_EPHEMERAL_MISSING, written, hints);
  if (!stored.hasIdentityKey) return recoverable(facts, MissCause.INITIATOR_IDENTITY_MISSING, written, hints);

  if (stored.withheldReason !== undefined)
    return recoverable(
      facts,
      MissCause.KEY_WITHHELD,
      {
        withheld_reason: stored.withheldReason,
        initiator_user_id: stored.initiator.userId,
        initiator_device_id: stored.initiator.deviceId,
      },
      hints,
    );

  if (wasAddedAfter(stored, registration))
    return recoverable(
      facts,
      MissCause.DEVICE_ADDED_AFTER_SESSION,
      {
        device_added_in_version: String(registration.addedInVersion),
        session_device_list_version: String(stored.pinnedVersion ?? 0n),
        device_added_at: registration.addedAt.toISOString(),
        session_created_at: stored.createdAt.toISOString(),
      },
      hints,
    );

  return recoverable(
    facts,
    MissCause.ENVELOPE_MISSING,
    {
      envelopes_present: String(stored.envelopesPresent),
      envelopes_expected: String(stored.envelopesExpected),
      writer_build: stored.writerBuild,
    },
    hints,
  );
}

/** The same for every stranger and every unknown conversation: nothing in it depends on what exists. */
const strangerAnswer: Explanation = {
  kind: 'miss',
  cause: MissCause.NOT_FOUND_OR_NOT_PERMITTED,
  recovery: Recovery.NOT_PERMITTED,
  remedy: Remedy.NONE,
  evidence: {},
  keyRequestId: '',
  retryAfterMs: 0,
};

/** Why a user without a right to an epoch has none, and the membership that shows it. */
export function whyNotEntitled(
  memberships: EntitlementFacts['memberships'],
  epoch: bigint,
): { readonly cause: MissCause; readonly membership: EntitlementFacts['memberships'][number] | undefined } {
  const leftBefore = memberships.findLast(({ toEpoch }) => toEpoch !== 0n && toEpoch < epoch);
  const joinedAfter = memberships.find(({ fromEpoch }) => fromEpoch > epoch);
  if (leftBefore === undefined && joinedAfter !== undefined)
    return { cause: MissCause.HISTORY_NOT_SHARED, membership: joinedAfter };
  return { cause: MissCause.NOT_A_MEMBER_AT_EPOCH, membership: leftBefore ?? memberships.at(-1) };
}

function explainMembership(facts: MissFacts, entitlement: EntitlementFacts, epoch: bigint): Explanation {
  const { cause, membership } = whyNotEntitled(entitlement.memberships, epoch);
  const history_policy = HistoryPolicySchema.value[entitlement.historyPolicy]?.localName ?? 'UNSPECIFIED';
  return final(facts, cause, {
    remedy: Remedy.BE_ADDED,
    evidence: {
      epoch: String(epoch),
      ...(membership && { member_from_epoch: String(membership.fromEpoch) }),
      ...(cause === MissCause.HISTORY_NOT_SHARED
        ? { history_policy }
        : membership && { member_to_epoch: String(membership.toEpoch) }),
    },
  });
}

function revoked(facts: MissFacts, revokedAt: Date): Explanation {
  return final(facts, MissCause.DEVICE_REVOKED, {
    remedy: Remedy.NONE,
    evidence: { device_id: facts.device.deviceId, revoked_at: revokedAt.toISOString() },
  });
}

/** A user whom the header does not pin came to the conversation after the session: so did the device. */
function wasAddedAfter(stored: StoredSessionFacts, registration: DeviceFacts & { registered: true }): boolean {
  if (!stored.hasHeader) return registration.addedAt > stored.createdAt;
  return stored.pinnedVersion === undefined || registration.addedInVersion > stored.pinnedVersion;
}

function final(
  facts: MissFacts,
  cause: MissCause,
  told: { recovery?: Recovery; remedy: Remedy; evidence: Record<string, string> },
): Explanation {
  return {
    kind: 'miss',
    cause,
    recovery: told.recovery ?? Recovery.NOT_PERMITTED,
    remedy: told.remedy,
    evidence: { conversation_id: facts.conversationId, session_id: facts.sessionId, ...told.evidence },
    keyRequestId: '',
    retryAfterMs: 0,
  };
}

function recoverable(
  facts: MissFacts,
  cause: MissCause,
  evidence: Record<string, string>,
  hints: RetryHints,
): Explanation | Incomplete {
  if (!facts.holders.known) return { kind: 'incomplete', peer: facts.holders.peer };
  const { eligible, online } = facts.holders.value;
  return {
    kind: 'miss',
    cause,
    evidence: {
      conversation_id: facts.conversationId,
      session_id: facts.sessionId,
      ...evidence,
      holders: String(eligible),
      holders_online: String(online),
    },
    keyRequestId: facts.openRequest?.keyRequestId ?? '',
    ...recoveryOf(facts.openRequest, eligible, online, hints),
  };
}

function recoveryOf(
  openRequest: OpenRequestFacts | undefined,
  eligible: number,
  online: number,
  hints: RetryHints,
): Pick<Explanation, 'recovery' | 'remedy' | 'retryAfterMs'> {
  if (openRequest?.state === 'OFFERED')
    return { recovery: Recovery.PENDING_OFFERED, remedy: Remedy.WAIT, retryAfterMs: hints.offeredRetryMs };
  if (openRequest !== undefined)
    return {
      recovery: Recovery.PENDING_NO_HOLDER_ONLINE,
      remedy: Remedy.WAIT,
      // A holder has come since: the offer is about to be made.
      retryAfterMs: online > 0 ? hints.offeredRetryMs : hints.waitingRetryMs,
    };
  if (eligible === 0) return { recovery: Recovery.NO_HOLDER_EXISTS, remedy: Remedy.REQUEST_ROTATION, retryAfterMs: 0 };
  return { recovery: Recovery.REQUESTABLE, remedy: Remedy.REQUEST_KEY, retryAfterMs: 0 };
}
