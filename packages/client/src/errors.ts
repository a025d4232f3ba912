import { Code } from '@connectrpc/connect';
import {
  type Miss,
  type MissCauseName,
  missCauseName,
  type Recovery,
  RecoverySchema,
  type Remedy,
  RemedySchema,
} from '@keytrail/contracts';
import type { DeviceLogProblem, RosterProblem } from '@keytrail/crypto';
import { type FieldProblem, type Refusal, readRefusal } from '@keytrail/rpc/refusal';
import { enumName } from './enum-name.ts';

export type RecoveryName = Exclude<keyof typeof Recovery, 'UNSPECIFIED'>;
export type RemedyName = Exclude<keyof typeof Remedy, 'UNSPECIFIED'>;

/** Two causes are found by the device itself: the envelope is there, but wrong, or its prekeys are gone. */
export type KeyMissCause = MissCauseName | 'ENVELOPE_WRONG' | 'ENVELOPE_UNOPENABLE';

export interface KeyMissDetails {
  readonly cause: KeyMissCause;
  readonly recovery: RecoveryName;
  readonly remedy: RemedyName;
  readonly evidence?: Readonly<Record<string, string>>;
  readonly keyRequestId?: string | undefined;
  readonly retryAfterMs?: number;
  readonly traceId?: string | undefined;
  readonly causedByTraceId?: string | undefined;
  readonly helpUrl?: string;
  readonly endedBecause?: string | undefined;
  readonly timedOut?: boolean;
}

/** The key of a session is not to be had now: why, whether it can still come, and what to do. */
export class KeyMissError extends Error {
  override readonly name = 'KeyMissError';
  readonly conversationId: string;
  readonly sessionId: string;
  /** Why there is no key. */
  override readonly cause: KeyMissCause;
  readonly recovery: RecoveryName;
  readonly remedy: RemedyName;
  /** As shown at the cause in the contract. */
  readonly evidence: Readonly<Record<string, string>>;
  /** Of the request that is open, or was. */
  readonly keyRequestId: string | undefined;
  /** 0 when asking again does not help. */
  readonly retryAfterMs: number;
  readonly traceId: string | undefined;
  /** Trace of the last write to the session or conversation. */
  readonly causedByTraceId: string | undefined;
  readonly helpUrl: string;
  /** Why the key request ended without a key, when it did. */
  readonly endedBecause: string | undefined;
  /** True when the caller's time ran out first; a key request stands. */
  readonly timedOut: boolean;

  constructor(session: { conversationId: string; sessionId: string }, details: KeyMissDetails) {
    super(`no key for session ${session.sessionId}: ${details.cause} (${details.recovery})`);
    this.conversationId = session.conversationId;
    this.sessionId = session.sessionId;
    this.cause = details.cause;
    this.recovery = details.recovery;
    this.remedy = details.remedy;
    this.evidence = details.evidence ?? {};
    this.keyRequestId = details.keyRequestId || undefined;
    this.retryAfterMs = details.retryAfterMs ?? 0;
    this.traceId = details.traceId || undefined;
    this.causedByTraceId = details.causedByTraceId || undefined;
    this.helpUrl = details.helpUrl ?? '';
    this.endedBecause = details.endedBecause;
    this.timedOut = details.timedOut ?? false;
  }

  /** The same miss, as it stands now. */
  with(changes: Partial<KeyMissDetails>): KeyMissError {
    return new KeyMissError(this, { ...this, ...changes });
  }
}

/** A service said no, and why. */
export class RefusalError extends Error {
  override readonly name: string = 'RefusalError';
  readonly code: Code;
  /** A ReasonName; empty when the answer carried none, as a proxy's or the transport's. */
  readonly reason: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly fields: readonly FieldProblem[];
  readonly retryAfterMs: number | undefined;
  /** As the service told it; of an answer that never came, the trace in which the call was made. */
  readonly traceId: string | undefined;

  constructor(refusal: Refusal, cause: unknown) {
    super(`${refusal.reason || Code[refusal.code]}: ${refusal.message}`, { cause });
    this.code = refusal.code;
    this.reason = refusal.reason;
    this.metadata = refusal.metadata;
    this.fields = refusal.fields;
    this.retryAfterMs = refusal.retryAfterMs;
    this.traceId = refusal.traceId;
  }
}

/** Reasons that say nothing about the request itself: the same one may be accepted later. */
const undecided = new Set([
  '',
  'INTERNAL_FAULT',
  'PEER_UNAVAILABLE',
  'SHUTTING_DOWN',
  'SCHEMA_BEHIND',
  'BUILD_BEHIND',
  'DATABASE_RESTORED',
  'DEADLINE_EXCEEDED',
  'CANCELLED',
  'LIMIT_EXCEEDED',
  'TOKEN_MISSING',
  'TOKEN_INVALID',
]);

/** Whether a mutation was refused as it is. Otherwise nobody knows what became of it, and it must be sent again unchanged. */
export function isDecided(error: unknown): error is RefusalError {
  return error instanceof RefusalError && !undecided.has(error.reason);
}

/** Another session won the epoch that this device wanted to make. The winner's is being opened. */
export class RotationLost extends RefusalError {
  override readonly name = 'RotationLost';
  readonly winner: { readonly epoch: bigint; readonly sessionId: string };

  constructor(refusal: Refusal, cause: unknown) {
    super(refusal, cause);
    this.winner = {
      epoch: BigInt(refusal.metadata.current_epoch ?? '0'),
      sessionId: refusal.metadata.current_session_id ?? '',
    };
  }
}

/**
 * - `header`: the header does not parse, is of another session, or its signature does not verify
 * - `certificate`: no root key certifies the device that made it
 * - `root-key-changed`: the maker's root key is another one than the pinned one
 * - `chain`: it does not follow the header of the epoch before
 * - `fork`: this device has another session of the same epoch
 * - `roster`: the maker is not in its own roster, the roster is not the one that the header is for, or others than its members were to be sealed to
 * - `revoked-reader`: a device that is known to be revoked may read it, so that nothing is sent under it
 */
export type SessionProblem =
  | 'header'
  | 'certificate'
  | 'root-key-changed'
  | 'chain'
  | 'fork'
  | 'roster'
  | 'revoked-reader';

/** What the server sent as a session is not acceptable; another envelope would not change that. */
export class SessionRefusedError extends Error {
  override readonly name = 'SessionRefusedError';
  readonly problem: SessionProblem;
  readonly traceId: string | undefined;

  constructor(problem: SessionProblem, message: string, options: { cause?: unknown } = {}) {
    super(`session refused (${problem}): ${message}`, { cause: options.cause });
    this.problem = problem;
  }
}

/** What is wrong with a device list: its log (see `DeviceLogProblem`), or `rolled-back`, older than one that was seen before. */
export type DeviceListProblem = DeviceLogProblem | 'rolled-back';

/** The server told of a user's devices what does not follow from the log that this device has seen. Nothing is sealed by it. */
export class DeviceListRefusedError extends Error {
  override readonly name = 'DeviceListRefusedError';
  readonly userId: string;
  readonly problem: DeviceListProblem;
  readonly traceId: string | undefined;

  constructor(userId: string, problem: DeviceListProblem, cause?: unknown) {
    super(`device list of ${userId} refused (${problem})`, { cause });
    this.userId = userId;
    this.problem = problem;
  }
}

/**
 * - those of RosterError: what is wrong with an entry of the roster's log
 * - `certificate` also: the author's keys are not those that the author's user's log has
 * - `rolled-back`: an older roster than this device has seen
 * - `fork`: another history than the one that this device has seen
 * - `roster`: a session header, or the server, names another roster than the one that members signed
 * - `unsigned`: the log begins with a roster that nobody signed, and `unsignedRosters` does not allow it
 */
export type RosterLogProblem = RosterProblem | 'rolled-back' | 'fork' | 'roster' | 'unsigned';

/** A roster is not what its members signed. Nothing is sealed by it, and no session of it is believed. */
export class RosterRefusedError extends Error {
  override readonly name = 'RosterRefusedError';
  readonly conversationId: string;
  readonly problem: RosterLogProblem;
  readonly traceId: string | undefined;

  constructor(conversationId: string, problem: RosterLogProblem, cause?: unknown) {
    super(`roster of ${conversationId} refused (${problem})`, { cause });
    this.conversationId = conversationId;
    this.problem = problem;
  }
}

/** Gives an error that says nothing of its trace the one in which it came up: what the device found out by itself leads to the answers it was found in. */
export function tellTrace(error: unknown, traceId: string): void {
  if (!(error instanceof RefusalError) && !isAboutTheSession(error)) return;
  const told = error as { traceId: string | undefined };
  told.traceId ??= traceId || undefined;
}

/** What is wrong with a session, its key, or with whom it comes from: asking again, as things are, would end the same. */
export function isAboutTheSession(error: unknown): error is Error {
  return [KeyMissError, SessionRefusedError, DeviceListRefusedError, RosterRefusedError].some(
    (kind) => error instanceof kind,
  );
}

/** The code that was confirmed is not that of the link request: another device may have put its own in. */
export class LinkCodeMismatchError extends Error {
  override readonly name = 'LinkCodeMismatchError';

  constructor() {
    super('the code is not that of the link request');
  }
}

/** A root key that was brought here is not the one that the user's device list has now. */
export class RootKeyNotCurrentError extends Error {
  override readonly name = 'RootKeyNotCurrentError';

  constructor() {
    super("this root key is not the one that the user's device list has now");
  }
}

/** Devices that were to be kept, but are none of the user's good ones: never registered, or revoked. Nothing was changed. */
export class UnknownDevicesError extends Error {
  override readonly name = 'UnknownDevicesError';
  readonly deviceIds: readonly string[];

  constructor(deviceIds: readonly string[]) {
    super(`the user has no such devices: ${deviceIds.join(', ')}`);
    this.deviceIds = deviceIds;
  }
}

/** A safety number is for two users. */
export class SafetyNumberOfOneselfError extends Error {
  override readonly name = 'SafetyNumberOfOneselfError';

  constructor() {
    super('a safety number is for two users');
  }
}

/** This device is revoked, for good: it attaches no more. Has the reason with which the services would refuse it. */
export class DeviceRevokedError extends Error {
  override readonly name = 'DeviceRevokedError';
  readonly reason = 'DEVICE_REVOKED';

  constructor() {
    super('this device is revoked');
  }
}

/** There is no root key of this user to compare: the user has no devices, or none that may be known here. */
export class RootKeyUnknownError extends Error {
  override readonly name = 'RootKeyUnknownError';

  constructor(userId: string) {
    super(`no root key of ${userId} is known here`);
  }
}

/** The server says that it erased the message together with its sender; no signature says so. */
export class MessageErasedError extends Error {
  override readonly name = 'MessageErasedError';
  /** The server's time. */
  readonly erasedAt: Date;

  constructor(erasedAt: Date) {
    super('the message was erased together with its sender');
    this.erasedAt = erasedAt;
  }
}

export class NotRegisteredError extends Error {
  override readonly name = 'NotRegisteredError';

  constructor() {
    super('this device has not been registered: call register(), or have it approved by another device');
  }
}

/**
 * - `link-again`: the user has another root key, and this device is certified by it: have it approved, or recover
 * - `change-root-key-again`: the new root key is one that was made here, in a change that was not answered: call `changeRootKey` again
 * - `register-anew`: the keys themselves are other ones; register under another device id
 */
export type RegistrationRemedy = 'link-again' | 'change-root-key-again' | 'register-anew';

/** The service has another identity key, signing key or certificate for this device. */
export class RegisteredDifferentlyError extends Error {
  override readonly name = 'RegisteredDifferentlyError';
  readonly remedy: RegistrationRemedy;

  constructor(remedy: RegistrationRemedy) {
    super(`other keys are registered for this device than its key store holds: ${remedy}`);
    this.remedy = remedy;
  }
}

/**
 * What a failed call says, as one of the errors of this SDK; an abort stays what it is. `callTraceId` is the trace in which the call was made:
 * what no service answered, as when it is out of reach, names none.
 */
export function errorOfCall(thrown: unknown, callTraceId = ''): Error {
  if (isOwnError(thrown)) return thrown;
  const refusal = readRefusal(thrown);
  return new RefusalError({ ...refusal, traceId: refusal.traceId || callTraceId || undefined }, thrown);
}

function isOwnError(thrown: unknown): thrown is Error {
  return thrown instanceof RefusalError || isAboutTheSession(thrown);
}

/** The miss in a refusal, if it is one. A stranger's answer has a reason and nothing else. */
export function missOf(
  error: unknown,
  session: { conversationId: string; sessionId: string },
): KeyMissError | undefined {
  if (!(error instanceof RefusalError)) return undefined;
  const refusal = readRefusal(error.cause);
  const { miss, traceId } = refusal;
  if (miss !== undefined) return missErrorOf(miss, session, traceId);
  if (refusal.code !== Code.NotFound || refusal.reason !== 'NOT_FOUND_OR_NOT_PERMITTED') return undefined;
  const cause = 'NOT_FOUND_OR_NOT_PERMITTED';
  return new KeyMissError(session, { cause, recovery: 'NOT_PERMITTED', remedy: 'NONE', traceId });
}

/** The miss that an answer tells of. */
export function missErrorOf(
  miss: Miss,
  session: { conversationId: string; sessionId: string },
  traceId?: string,
): KeyMissError {
  return new KeyMissError(session, {
    cause: missCauseName(miss.cause),
    recovery: recoveryName(miss.recovery),
    remedy: remedyName(miss.remedy),
    evidence: miss.evidence,
    keyRequestId: miss.keyRequestId,
    retryAfterMs: miss.retryAfterMs,
    traceId: miss.traceId || traceId,
    causedByTraceId: miss.causedByTraceId,
    helpUrl: miss.helpUrl,
  });
}

export function recoveryName(recovery: Recovery): RecoveryName {
  return enumName(RecoverySchema, recovery) as RecoveryName;
}

export function remedyName(remedy: Remedy): RemedyName {
  return enumName(RemedySchema, remedy) as RemedyName;
}
