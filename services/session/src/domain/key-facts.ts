import type { DeviceId } from './device.ts';
import type { Answer, Explanation, HolderFacts, Incomplete } from './explain-miss.ts';
import type { EndedBecause, KeyRequestState } from './key-request.ts';

/** All that is known about one device and one session: what explainKey and the timeline are made of. */
export interface KeyFacts {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly reader: DeviceId;
  /** By the clock of session's database. */
  readonly now: Date;
  /** The build that answers. */
  readonly runningBuild: string;
  /** GetInitialSession would answer with a key. */
  readonly readable: boolean;
  /** What GetInitialSession would say; undefined when it is readable. */
  readonly miss: Explanation | Incomplete | undefined;
  /** The cause of a miss that is incomplete, where it does not rest on the peer that could not be asked: only its recovery does. */
  readonly decided?: Pick<Explanation, 'cause' | 'evidence'> | undefined;
  readonly session: SessionRowFacts | undefined;
  readonly discardedAt: Date | undefined;
  /** Of session's database, in the order of their names. */
  readonly migrations: readonly { readonly name: string; readonly appliedAt: Date }[];
  /** Who wrote the sessions of the conversation. */
  readonly writers: readonly { readonly build: string; readonly firstAt: Date; readonly lastAt: Date }[];
  /** The reader's, by attempt. */
  readonly envelopes: readonly EnvelopeFacts[];
  /** The reader's for this session, oldest first. */
  readonly requests: readonly RequestFacts[];
  readonly locallyRevokedAt: Date | undefined;
  /** The value is undefined when conversation knows nothing of it. */
  readonly conversation: Answer<ConversationRecord | undefined>;
  /** The reader's and the initiator's, as far as they are there. */
  readonly devices: Answer<readonly DeviceRecord[]>;
  readonly holders: Answer<HolderFacts>;
  readonly presence: Answer<PresenceRecord>;
}

export interface SessionRowFacts {
  readonly imported: boolean;
  readonly epoch: bigint;
  readonly initiator: DeviceId;
  readonly hasEphemeralKey: boolean;
  readonly hasIdentityKey: boolean;
  readonly hasHeader: boolean;
  readonly envelopesExpected: number;
  /** Of the first write. */
  readonly envelopesPresent: number;
  readonly envelopesErased: number;
  readonly withheldReason: string | undefined;
  readonly writerBuild: string;
  /** The newest migration that the writer knew. */
  readonly writerSchema: string | undefined;
  readonly traceId: string;
  readonly createdAt: Date;
}

export interface EnvelopeFacts {
  readonly attempt: number;
  readonly keyRequestId: string | undefined;
  readonly sealer: DeviceId;
  readonly writtenAt: Date;
  readonly openedAt: Date | undefined;
  readonly rejectedAt: Date | undefined;
  readonly rejectedBecause: string | undefined;
}

export interface RequestFacts {
  readonly keyRequestId: string;
  readonly kind: string;
  readonly state: KeyRequestState;
  readonly requestedAt: Date;
  readonly queuedAt: Date | undefined;
  readonly holderWantedAt: Date | undefined;
  readonly expiresAt: Date;
  readonly endedAt: Date | undefined;
  readonly endedBecause: EndedBecause | undefined;
  readonly acceptedAttempt: number | undefined;
  readonly traceId: string;
  readonly writerBuild: string;
  readonly offers: readonly OfferFacts[];
}

export interface OfferFacts {
  readonly holder: DeviceId;
  readonly attempt: number;
  readonly offeredAt: Date;
  readonly lapsesAt: Date;
  readonly declinedAt: Date | undefined;
  /** Empty unless it was declined. */
  readonly declinedBecause: string;
}

export interface ConversationRecord {
  /** Empty for one that never became visible. */
  readonly type: string;
  readonly currentEpoch: bigint;
  readonly currentSessionId: string;
  readonly rotationDueReason: string;
  readonly rotationDueSince: Date | undefined;
  readonly rotationDueTraceId: string;
  readonly rotationDueWriterBuild: string;
  readonly createdAt: Date | undefined;
  readonly traceId: string;
  readonly writerBuild: string;
  /** The reader's alone, oldest first. */
  readonly memberships: readonly MembershipRecord[];
  readonly epochs: readonly EpochRecord[];
  readonly epochGaps: readonly bigint[];
  readonly standing: StandingRecord | undefined;
}

export interface MembershipRecord {
  readonly role: string;
  readonly joinedEpoch: bigint;
  /** 0n while it lasts. */
  readonly leftEpoch: bigint;
  readonly joinedAt: Date | undefined;
  readonly leftAt: Date | undefined;
  readonly traceId: string;
  readonly writerBuild: string;
  /** Of its end; empty while it lasts. */
  readonly leftTraceId: string;
  readonly leftWriterBuild: string;
}

export interface EpochRecord {
  readonly epoch: bigint;
  readonly sessionId: string;
  readonly committedAt: Date | undefined;
  readonly traceId: string;
  readonly writerBuild: string;
}

export interface StandingRecord {
  /** committed, candidate, aborted or lost. */
  readonly standing: string;
  readonly decidedAt: Date | undefined;
  readonly beganAt: Date | undefined;
  readonly traceId: string;
  readonly writerBuild: string;
}

export interface DeviceRecord extends DeviceId {
  readonly registeredAt: Date | undefined;
  readonly revokedAt: Date | undefined;
  readonly keysMissing: readonly string[];
  readonly oneTimePrekeys: number;
  readonly oneTimeKemPrekeys: number;
  readonly traceId: string;
  readonly writerBuild: string;
  /** Of its revocation; empty while it is active. */
  readonly revocationTraceId: string;
  readonly revocationWriterBuild: string;
}

export interface PresenceRecord {
  readonly storeReachable: boolean;
  readonly gateways: readonly GatewayRecord[];
  /** Of the users of the holders; undefined when presence could not list them. */
  readonly attached: readonly (DeviceId & { readonly gatewayId: string; readonly online: boolean })[] | undefined;
}

export interface GatewayRecord {
  readonly gatewayId: string;
  readonly alive: boolean;
  readonly entries: number;
  readonly isOwn: boolean;
  readonly streams: number;
  readonly streamsWithoutEntry: number;
  readonly lastLossAt: Date | undefined;
}
