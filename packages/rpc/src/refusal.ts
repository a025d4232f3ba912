import { create, type DescMessage, type MessageInitShape } from '@bufbuild/protobuf';
import { durationFromMs, durationMs } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError } from '@connectrpc/connect';
import {
  BadRequestSchema,
  ErrorInfoSchema,
  errorDomain,
  type Miss,
  MissSchema,
  missCauseName,
  type ReasonName,
  RetryInfoSchema,
} from '@keytrail/contracts';
import { codeOfReason } from './reason-codes.ts';

export { codeOfReason };

export interface FieldProblem {
  /** Path as in the proto: `devices[0].user_id`. */
  readonly field: string;
  readonly description: string;
}

export interface RefusalDetail {
  readonly desc: DescMessage;
  readonly value: MessageInitShape<DescMessage>;
}

export interface RefuseOptions {
  /** As the comment of the reason in reason.proto shows it. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly fields?: readonly FieldProblem[];
  /** Travels as google.rpc.RetryInfo. */
  readonly retryAfterMs?: number;
  /** Further details, each a message of the contracts. */
  readonly details?: readonly RefusalDetail[];
  /** For the log; never leaves the process. */
  readonly cause?: unknown;
}

/** What a refusal says, read from an error of either wire or of `refuse`. */
export interface Refusal {
  readonly code: Code;
  /** A ReasonName or MissCauseName; empty when the error carries none (a proxy's, a transport's). */
  readonly reason: string;
  /** Without its code. */
  readonly message: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly miss: Miss | undefined;
  readonly fields: readonly FieldProblem[];
  readonly retryAfterMs: number | undefined;
  readonly traceId: string | undefined;
}

/** A refusal with a reason of the catalogue: `throw refuse('EPOCH_CONFLICT', …)`. The status code follows from the reason. */
export function refuse(reason: ReasonName, message: string, options: RefuseOptions = {}): ConnectError {
  const details: RefusalDetail[] = [
    detail(ErrorInfoSchema, { reason, domain: errorDomain, metadata: { ...options.metadata } }),
  ];
  if (options.fields !== undefined && options.fields.length > 0)
    details.push(
      detail(BadRequestSchema, {
        fieldViolations: options.fields.map(({ field, description }) => ({ field, description })),
      }),
    );
  if (options.retryAfterMs !== undefined) details.push(retryDetail(options.retryAfterMs));
  if (options.details !== undefined) details.push(...options.details);
  return new ConnectError(message, codeOfReason[reason], undefined, details, options.cause);
}

/** The answer to a read of a key that is not there: NOT_FOUND, the cause as reason, the evidence as metadata, and the Miss itself. */
export function refuseMiss(miss: MessageInitShape<typeof MissSchema>): ConnectError {
  const full = create(MissSchema, miss);
  const reason = missCauseName(full.cause);
  const details: RefusalDetail[] = [
    detail(ErrorInfoSchema, { reason, domain: errorDomain, metadata: { ...full.evidence } }),
    detail(MissSchema, full),
  ];
  if (full.retryAfterMs > 0) details.push(retryDetail(full.retryAfterMs));
  return new ConnectError(missMessages[reason], Code.NotFound, undefined, details);
}

/** INVALID_FIELD for one field that breaks a rule which the contract cannot express. */
export function invalidField(field: string, description: string): ConnectError {
  return refuse('INVALID_FIELD', `${field}: ${description}`, {
    metadata: { field },
    fields: [{ field, description }],
  });
}

/** Reads what a refusal says; never throws. An error that is no ConnectError reads as its message with code UNKNOWN. */
export function readRefusal(error: unknown): Refusal {
  const from = ConnectError.from(error);
  const info = from.findDetails(ErrorInfoSchema).find(({ domain }) => domain === errorDomain);
  const [miss] = from.findDetails(MissSchema);
  const [retry] = from.findDetails(RetryInfoSchema);
  const { trace_id: traceId, ...metadata } = info?.metadata ?? {};
  return {
    code: from.code,
    reason: info?.reason ?? '',
    message: from.rawMessage,
    metadata,
    miss,
    fields: from
      .findDetails(BadRequestSchema)
      .flatMap(({ fieldViolations }) => fieldViolations.map(({ field, description }) => ({ field, description }))),
    retryAfterMs: retry?.retryDelay === undefined ? undefined : durationMs(retry.retryDelay),
    traceId: traceId ?? (miss?.traceId || undefined) ?? from.metadata.get('keytrail-trace-id') ?? undefined,
  };
}

function detail<D extends DescMessage>(desc: D, value: MessageInitShape<D>): RefusalDetail {
  return { desc, value };
}

function retryDetail(retryAfterMs: number): RefusalDetail {
  return detail(RetryInfoSchema, { retryDelay: durationFromMs(Math.max(0, Math.ceil(retryAfterMs))) });
}

const missMessages: Readonly<Record<ReturnType<typeof missCauseName>, string>> = {
  NOT_FOUND_OR_NOT_PERMITTED: 'there is no such thing, or it is not yours to know',
  SESSION_UNKNOWN: 'the conversation has no such session',
  NOT_A_MEMBER_AT_EPOCH: "the user was not a member at the session's epoch",
  HISTORY_NOT_SHARED: "the user joined after the session's epoch, and the conversation does not share history",
  DEVICE_UNKNOWN: 'the calling device has not been registered',
  DEVICE_REVOKED: 'the calling device has been revoked',
  DEVICE_ADDED_AFTER_SESSION: 'the device was registered after the session was made',
  KEY_WITHHELD: 'the initiator withheld the key from this device',
  ENVELOPE_MISSING: 'the session has no envelope for this device, though it should',
  INITIATOR_EPHEMERAL_MISSING: 'the row of the session has no initiator ephemeral key',
  INITIATOR_IDENTITY_MISSING: 'the row of the session has no initiator identity key',
};
