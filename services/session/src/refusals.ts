import type { ConnectError } from '@connectrpc/connect';
import { type MissCause, missCauseName, SessionIncompleteSchema } from '@keytrail/contracts';
import { invalidField, refuse } from '@keytrail/rpc';
import type { KeyRequest } from './domain/key-request.ts';
import type { SessionProblem } from './domain/whole-session.ts';

/** The one answer to strangers: what does not exist and what is not theirs look the same. */
export function notFoundOrNotPermitted(): ConnectError {
  return refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such thing, or it is not yours to know');
}

/** For operators, from whom nothing is hidden. */
export function keyRequestUnknown(): ConnectError {
  return refuse('NOT_FOUND_OR_NOT_PERMITTED', 'there is no such key request', {
    metadata: { field: 'key_request_id' },
  });
}

export function sessionRefused(problem: SessionProblem): ConnectError {
  switch (problem.kind) {
    case 'header_malformed':
      return invalidField('session.signed_header.header', problem.description);
    case 'header_mismatch':
      return refuse('HEADER_MISMATCH', `the signed header disagrees with the request in ${problem.field}`, {
        metadata: { field: problem.field },
      });
    case 'field':
      return invalidField(problem.field, problem.description);
    case 'incomplete':
      return refuse(
        'SESSION_INCOMPLETE',
        `the session does not cover the roster: ${problem.missing.length} missing, ${problem.unexpected.length} unexpected`,
        {
          details: [
            {
              desc: SessionIncompleteSchema,
              value: { missing: [...problem.missing], unexpected: [...problem.unexpected] },
            },
          ],
        },
      );
  }
}

export function sessionConflict(sessionId: string): ConnectError {
  return refuse('SESSION_CONFLICT', 'the session id is stored with other content', {
    metadata: { session_id: sessionId },
  });
}

/** conversation gave the session up and had it discarded. */
export function sessionAborted(sessionId: string): ConnectError {
  return refuse('SESSION_ABORTED', 'this session was given up; start again with a new session id', {
    metadata: { session_id: sessionId },
  });
}

export function userErased(userId: string): ConnectError {
  return refuse('USER_ERASED', 'a user has been erased', { metadata: { user_id: userId } });
}

export function signatureInvalid(field: string): ConnectError {
  return refuse('SIGNATURE_INVALID', `${field} does not verify`, {
    metadata: { field },
    fields: [{ field, description: 'does not verify' }],
  });
}

export function certificateInvalid(field: string, rule: string): ConnectError {
  return refuse('CERTIFICATE_INVALID', `${field}: ${rule}`, {
    metadata: { field, rule },
    fields: [{ field, description: rule }],
  });
}

export function notOffered(keyRequestId: string): ConnectError {
  return refuse('NOT_OFFERED', 'this device was not offered this attempt of the key request', {
    metadata: { key_request_id: keyRequestId },
  });
}

/** The refusal of an envelope, or of an operator's call, for a request that is open no more. */
export function keyRequestEnded({ keyRequestId, state, acceptedAttempt }: KeyRequest, attempt?: number): ConnectError {
  if (attempt !== undefined && acceptedAttempt === attempt)
    return refuse('ATTEMPT_ALREADY_FULFILLED', 'an envelope of this attempt was accepted already', {
      metadata: { key_request_id: keyRequestId, attempt: String(attempt) },
    });
  return refuse('KEY_REQUEST_ENDED', 'the key request has ended', {
    metadata: { key_request_id: keyRequestId, state },
  });
}

export function notEntitled(who: string, cause: MissCause): ConnectError {
  return refuse('NOT_ENTITLED', `the ${who} is not entitled to this session's key`, {
    metadata: { cause: missCauseName(cause) },
  });
}

export function peerUnavailable(peer: string): ConnectError {
  return refuse('PEER_UNAVAILABLE', 'a service that the answer depends on could not be asked', {
    metadata: { peer },
    retryAfterMs: 1000,
  });
}
