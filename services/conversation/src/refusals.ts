import { create } from '@bufbuild/protobuf';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { ConnectError } from '@connectrpc/connect';
import { MemberRole, MemberRoleSchema, RotationDueReasonSchema, SessionIncompleteSchema } from '@keytrail/contracts';
import { type FieldProblem, refuse } from '@keytrail/rpc';
import type { Incompleteness } from './domain/completeness.ts';
import type { DeviceStanding } from './peers/device-directory.ts';
import type { ConversationState } from './store/conversations.ts';

/** The one answer to strangers: an unknown conversation and one that is not theirs look the same. */
export function notFoundOrNotPermitted(): ConnectError {
  return refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such thing, or it is not yours to know');
}

/** For operators, from whom nothing is hidden. */
export function conversationUnknown(): ConnectError {
  return refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such conversation', {
    metadata: { field: 'conversation_id' },
  });
}

/** A session for an epoch that is already taken. */
export function epochConflict(current: ConversationState): ConnectError {
  return refuse('EPOCH_CONFLICT', 'another session won this epoch', {
    metadata: {
      current_epoch: String(current.epoch),
      current_session_id: current.sessionId,
      current_roster_version: String(current.rosterVersion),
    },
  });
}

export function rosterConflict(current: ConversationState): ConnectError {
  return refuse('ROSTER_CONFLICT', 'the roster changed meanwhile', {
    metadata: { current_roster_version: String(current.rosterVersion) },
  });
}

export function sessionAborted(sessionId: string): ConnectError {
  return refuse('SESSION_ABORTED', 'this session was given up; start again with a new session id', {
    metadata: { session_id: sessionId },
  });
}

export function directConversationExists(conversationId: string): ConnectError {
  return refuse('DIRECT_CONVERSATION_EXISTS', 'the pair has a direct conversation already', {
    metadata: { conversation_id: conversationId },
  });
}

export function directRosterFixed(conversationId: string): ConnectError {
  return refuse('DIRECT_ROSTER_FIXED', 'a direct conversation keeps its two members', {
    metadata: { conversation_id: conversationId },
  });
}

export function roleNotSufficient(role: MemberRole): ConnectError {
  return refuse('ROLE_NOT_SUFFICIENT', "the conversation's permissions ask for another role; everybody may leave", {
    metadata: { role: roleName(role), needed: roleName(MemberRole.ADMIN) },
  });
}

export function memberStateConflict(userId: string, how: string): ConnectError {
  return refuse('MEMBER_STATE_CONFLICT', `a named user ${how}`, { metadata: { user_id: userId } });
}

export function headerMismatch({ field, description }: FieldProblem): ConnectError {
  return refuse('HEADER_MISMATCH', `${field}: ${description}`, {
    metadata: { field },
    fields: [{ field, description }],
  });
}

export function signatureInvalid(field: string): ConnectError {
  return refuse('SIGNATURE_INVALID', `${field} does not verify`, {
    metadata: { field },
    fields: [{ field, description: 'does not verify under the signing key of the calling device' }],
  });
}

/** `field` of the signed change, as docs/reasons/roster-change-mismatch.md lists them. */
export function rosterChangeMismatch(field: string, description: string): ConnectError {
  return refuse('ROSTER_CHANGE_MISMATCH', `the signed roster change, ${field}: ${description}`, {
    metadata: { field },
    fields: [{ field, description }],
  });
}

export function certificateInvalid(field: string): ConnectError {
  return refuse('CERTIFICATE_INVALID', `${field} is not the registered certificate of the calling device`, {
    metadata: { field, rule: 'registered' },
    fields: [{ field, description: 'must be the registered certificate of the calling device' }],
  });
}

export function sessionIncomplete(lacking: Incompleteness): ConnectError {
  const counts = [
    `${lacking.missing.length} missing`,
    `${lacking.unexpected.length} unexpected`,
    `${lacking.staleDeviceLists.length} stale device lists`,
  ];
  return refuse('SESSION_INCOMPLETE', `the session does not cover the roster: ${counts.join(', ')}`, {
    details: [
      {
        desc: SessionIncompleteSchema,
        value: create(SessionIncompleteSchema, {
          missing: [...lacking.missing],
          unexpected: [...lacking.unexpected],
          staleDeviceLists: [...lacking.staleDeviceLists],
        }),
      },
    ],
  });
}

export function userErased(userId: string): ConnectError {
  return refuse('USER_ERASED', 'a named user has been erased', { metadata: { user_id: userId } });
}

/** Throws for a DIRECT conversation whose other member was erased. */
export function refuseClosed({ conversationId, closedAt }: ConversationState): void {
  if (!closedAt) return;
  throw refuse('CONVERSATION_CLOSED', 'the other member of the conversation has been erased', {
    metadata: { conversation_id: conversationId, closed_at: closedAt.toISOString() },
  });
}

export function rotationRequired(current: ConversationState): ConnectError {
  return refuse('ROTATION_REQUIRED', 'messages under this epoch are refused: rotate, or use the newer session', {
    metadata: {
      conversation_id: current.conversationId,
      current_epoch: String(current.epoch),
      due_reason: RotationDueReasonSchema.value[current.rotationDue]?.localName ?? '',
    },
  });
}

export function limitExceeded(limit: number, scope: string): ConnectError {
  return refuse('LIMIT_EXCEEDED', `more than ${limit} ${scope}`, { metadata: { limit: String(limit), scope } });
}

/** The refusal for a calling device that is not active. */
export function deviceNotActive(
  deviceId: string,
  standing: Exclude<DeviceStanding, { state: 'active' }>,
): ConnectError {
  if (standing.state === 'unknown')
    return refuse('DEVICE_NOT_REGISTERED', 'the calling device has not been registered', {
      metadata: { device_id: deviceId },
    });
  return refuse('DEVICE_REVOKED', 'the calling device has been revoked', {
    metadata: {
      device_id: deviceId,
      ...(standing.revokedAt && { revoked_at: timestampDate(standing.revokedAt).toISOString() }),
    },
  });
}

function roleName(role: MemberRole): string {
  return MemberRoleSchema.value[role]?.localName ?? '';
}
