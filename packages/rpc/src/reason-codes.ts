import { Code } from '@connectrpc/connect';
import type { ReasonName } from '@keytrail/contracts';

/** The status code of each reason: the one table, after the comments in keytrail/common/v1/reason.proto. */
export const codeOfReason: Readonly<Record<ReasonName, Code>> = {
  INVALID_FIELD: Code.InvalidArgument,
  TOKEN_MISSING: Code.Unauthenticated,
  TOKEN_INVALID: Code.Unauthenticated,
  CALLER_NOT_ALLOWED: Code.PermissionDenied,
  NOT_FOUND_OR_NOT_PERMITTED: Code.NotFound,
  REQUEST_ID_REUSED: Code.AlreadyExists,
  LIMIT_EXCEEDED: Code.ResourceExhausted,
  INTERNAL_FAULT: Code.Internal,
  PEER_UNAVAILABLE: Code.Unavailable,
  EXPLANATION_INCOMPLETE: Code.Unavailable,
  SHUTTING_DOWN: Code.Unavailable,
  SCHEMA_BEHIND: Code.Unavailable,
  BUILD_BEHIND: Code.Unavailable,
  DEADLINE_EXCEEDED: Code.DeadlineExceeded,
  CANCELLED: Code.Canceled,
  METHOD_UNKNOWN: Code.Unimplemented,

  ROOT_KEY_MISMATCH: Code.FailedPrecondition,
  CERTIFICATE_INVALID: Code.InvalidArgument,
  SIGNATURE_INVALID: Code.InvalidArgument,
  KEY_INVALID: Code.InvalidArgument,
  DEVICE_ALREADY_REGISTERED: Code.AlreadyExists,
  DEVICE_NOT_REGISTERED: Code.FailedPrecondition,
  PREKEY_ID_CONFLICT: Code.AlreadyExists,
  PREKEY_POOL_FULL: Code.ResourceExhausted,
  DEVICE_LIMIT_REACHED: Code.ResourceExhausted,
  DEVICE_REVOKED: Code.FailedPrecondition,

  DIRECT_CONVERSATION_EXISTS: Code.AlreadyExists,
  EPOCH_CONFLICT: Code.Aborted,
  ROSTER_CONFLICT: Code.Aborted,
  SESSION_INCOMPLETE: Code.FailedPrecondition,
  SESSION_ABORTED: Code.Aborted,
  SESSION_CONFLICT: Code.AlreadyExists,
  HEADER_MISMATCH: Code.InvalidArgument,
  ROTATION_REQUIRED: Code.FailedPrecondition,
  ROLE_NOT_SUFFICIENT: Code.PermissionDenied,
  MEMBER_STATE_CONFLICT: Code.FailedPrecondition,
  DIRECT_ROSTER_FIXED: Code.FailedPrecondition,

  KEY_REQUEST_ENDED: Code.FailedPrecondition,
  NOT_OFFERED: Code.FailedPrecondition,
  ATTEMPT_ALREADY_FULFILLED: Code.AlreadyExists,
  KEY_REQUEST_NOT_NEEDED: Code.FailedPrecondition,
  NOT_ENTITLED: Code.PermissionDenied,

  CONNECTION_SUPERSEDED: Code.Aborted,
  CONNECTION_UNKNOWN: Code.FailedPrecondition,
};
