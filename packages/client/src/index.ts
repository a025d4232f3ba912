export {
  type Conversation,
  ConversationKind,
  DeclineReason,
  HistoryPolicy,
  type KeyRequest,
  KeyRequestKind,
  KeyRequestState,
  type Member,
  MemberRole,
  type Message,
  MissCause,
  Recovery,
  Remedy,
  RotationDueReason,
  type SessionHeader,
  WithheldReason,
} from '@keytrail/contracts';
export {
  type DeviceLogProblem,
  type DeviceLogState,
  type KeyPair,
  type LoggedDevice,
  type LoggedRootKey,
  noblePrimitives,
  type Primitives,
  RecoveryError,
  RecoveryKeyTextError,
  type Ref,
  type SafetyNumber,
  VerificationError,
} from '@keytrail/crypto';
export type { RetryOptions, Transports } from './calls.ts';
export { type ClientOptions, createClient, type KeytrailClient, type RequestedKey } from './client.ts';
export { type Clock, systemClock } from './clock.ts';
export type {
  HistoryPolicyName,
  NewConversation,
  NewMember,
  Permissions,
  PolicyChange,
  RoleName,
  SealedConversation,
  WithheldReasonName,
} from './conversations.ts';
export {
  type DeviceListProblem,
  DeviceListRefusedError,
  DeviceRevokedError,
  type KeyMissCause,
  KeyMissError,
  LinkCodeMismatchError,
  MessageErasedError,
  NotRegisteredError,
  type RecoveryName,
  RefusalError,
  RegisteredDifferentlyError,
  type RegistrationRemedy,
  type RemedyName,
  RootKeyNotCurrentError,
  RootKeyUnknownError,
  type RosterLogProblem,
  RosterRefusedError,
  RotationLost,
  SafetyNumberOfOneselfError,
  type SessionProblem,
  SessionRefusedError,
  UnknownDevicesError,
} from './errors.ts';
export type { ClientEvents, DeclineReasonName, OfferEvent } from './events.ts';
export type { DeliveredMessage, MessageHandler } from './inbox.ts';
export type {
  KeyStore,
  PrekeyName,
  StoredDevice,
  StoredDeviceLog,
  StoredOutgoing,
  StoredPending,
  StoredPrekey,
  StoredPrekeyKind,
  StoredReceived,
  StoredSession,
  StoredUnread,
  StoredWantedKey,
  ToldHead,
  WantedKeyName,
} from './key-store.ts';
export { type ConformanceCheck, keyStoreConformance, type StoresToCheck } from './key-store-conformance.ts';
export { LinkTextError } from './link-text.ts';
export type { DeviceToTrust, DeviceTrust } from './make-session.ts';
export { memoryKeyStore } from './memory-key-store.ts';
export type { ReadMessage, ReadOptions, SentMessage } from './messages.ts';
export type { OpenOptions } from './open-session.ts';
export type { WaitingMessage } from './outbox.ts';
export type { PoolCounts } from './own-prekeys.ts';
export type { PrekeyRepair, Upkeep, UpkeepOptions } from './prekey-upkeep.ts';
export type { RotatedPrekeys } from './prekey-uploads.ts';
export type { CounterRanges } from './received-counters.ts';
export type { ChangedRootKey } from './root-key-change.ts';
export { acceptSignedRootKeyChanges, type RootKeyChange, type RootKeyPolicy } from './root-keys.ts';
export type { UnsignedRosters } from './roster-logs.ts';
export type { OpenSession } from './sessions.ts';
