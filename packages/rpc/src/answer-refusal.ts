import { create, type DescMessage, isMessage, type Message } from '@bufbuild/protobuf';
import { anyPack } from '@bufbuild/protobuf/wkt';
import { type Code, ConnectError } from '@connectrpc/connect';
import { AuthenticationError, KeySetUnavailableError } from '@keytrail/auth';
import {
  BadRequestSchema,
  type ErrorInfo,
  ErrorInfoSchema,
  errorDomain,
  HelpSchema,
  helpUrl,
  type Miss,
  type MissCauseName,
  MissSchema,
  Reason,
  type ReasonName,
  RetryInfoSchema,
  SessionIncompleteSchema,
  type Status,
  StatusSchema,
} from '@keytrail/contracts';
import { DatabaseUnfit, isDatabaseAway } from '@keytrail/telemetry';
import { type RefusalDetail, refuse } from './refusal.ts';

/** A refusal as both wires send it. */
export interface AnsweredRefusal {
  readonly code: Code;
  readonly message: string;
  readonly reason: string;
  readonly miss: Miss | undefined;
  readonly details: readonly { readonly desc: DescMessage; readonly value: Message }[];
  /** True when this is a fault of ours, whose cause belongs in the log. */
  readonly fault: boolean;
}

export interface AnswerContext {
  readonly traceId: string;
  readonly helpBaseUrl: string;
}

/** Turns whatever a call ended with into the refusal to send: with the trace id, and a link to the page of its reason. */
export function answerRefusal(error: unknown, { traceId, helpBaseUrl }: AnswerContext): AnsweredRefusal {
  const known = asRefusal(error);
  const refusal = known ?? refuse('INTERNAL_FAULT', 'a fault of the server; the trace id leads to the rest');
  const [info] = refusal.findDetails(ErrorInfoSchema) as [ErrorInfo];
  const url = helpUrl(info.reason as ReasonName | MissCauseName, helpBaseUrl);
  const [miss] = refusal.findDetails(MissSchema);
  const completeMiss =
    miss && create(MissSchema, { ...miss, traceId: miss.traceId || traceId, helpUrl: miss.helpUrl || url });
  const details: { desc: DescMessage; value: Message }[] = [
    {
      desc: ErrorInfoSchema,
      value: create(ErrorInfoSchema, {
        reason: info.reason,
        domain: info.domain,
        metadata: { ...info.metadata, trace_id: traceId },
      }),
    },
  ];
  if (completeMiss !== undefined) details.push({ desc: MissSchema, value: completeMiss });
  for (const detail of refusal.details) {
    const readable = readableDetail(detail as RefusalDetail);
    if (readable !== undefined) details.push(readable);
  }
  details.push({ desc: HelpSchema, value: create(HelpSchema, { links: [{ description: info.reason, url }] }) });
  return {
    code: refusal.code,
    message: refusal.rawMessage,
    reason: info.reason,
    miss: completeMiss,
    details,
    fault: known === undefined,
  };
}

/** google.rpc.Status, as it travels in grpc-status-details-bin. */
export function statusOf(refusal: AnsweredRefusal): Status {
  return create(StatusSchema, {
    code: refusal.code,
    message: refusal.message,
    details: refusal.details.map(({ desc, value }) => anyPack(desc, value)),
  });
}

function readableDetail(detail: RefusalDetail): { desc: DescMessage; value: Message } | undefined {
  if (!('desc' in detail)) return undefined;
  const { desc, value } = detail;
  if (desc.typeName === ErrorInfoSchema.typeName || desc.typeName === MissSchema.typeName) return undefined;
  return { desc, value: isMessage(value, desc) ? value : create(desc, value) };
}

/** Undefined for what is nobody's business outside: plain errors, and refusals of a peer that blame this service, not its caller. */
function asRefusal(error: unknown): ConnectError | undefined {
  if (error instanceof AuthenticationError)
    return error.problem === 'missing'
      ? refuse('TOKEN_MISSING', error.message)
      : refuse('TOKEN_INVALID', error.message, { metadata: { problem: error.problem }, cause: error });
  if (error instanceof KeySetUnavailableError)
    return refuse('PEER_UNAVAILABLE', error.message, {
      metadata: { peer: 'token-issuer' },
      retryAfterMs: 1000,
      cause: error,
    });
  if (error instanceof DatabaseUnfit) {
    const options = { metadata: error.metadata, retryAfterMs: 1000, cause: error };
    return error.reason === 'BUILD_BEHIND'
      ? refuse('BUILD_BEHIND', error.message, options)
      : refuse('SCHEMA_BEHIND', error.message, options);
  }
  if (isDatabaseAway(error))
    return refuse('PEER_UNAVAILABLE', 'the database could not be asked', {
      metadata: { peer: 'database' },
      retryAfterMs: 1000,
      cause: error,
    });
  if (!(error instanceof ConnectError)) return undefined;
  const info = error.findDetails(ErrorInfoSchema).find(({ domain }) => domain === errorDomain);
  if (info === undefined) return undefined;
  if (!error.isWireError) return error;
  return mayPassOn(info.reason) ? withKnownDetails(error) : undefined;
}

const resendable: readonly DescMessage[] = [
  ErrorInfoSchema,
  MissSchema,
  BadRequestSchema,
  RetryInfoSchema,
  SessionIncompleteSchema,
];

const firstDomainReason = 20;
const passedOn: readonly string[] = ['PEER_UNAVAILABLE', 'EXPLANATION_INCOMPLETE', 'NOT_FOUND_OR_NOT_PERMITTED'];

/** What a peer says about the matter itself is passed on to the caller; what it says about the call between us is not. */
function mayPassOn(reason: string): boolean {
  const value = Reason[reason as keyof typeof Reason] as number | undefined;
  return value === undefined || value >= firstDomainReason || passedOn.includes(reason);
}

/** A refusal from the wire has its details as bytes; those that the contracts know are sent again. */
function withKnownDetails(error: ConnectError): ConnectError {
  const details = resendable.flatMap((desc) =>
    error.findDetails(desc).map((value) => ({ desc, value: value as Message })),
  );
  return new ConnectError(error.rawMessage, error.code, undefined, details, error);
}
