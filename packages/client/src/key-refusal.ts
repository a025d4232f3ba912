import { Code } from '@connectrpc/connect';
import type { KeyRefusal } from '@keytrail/contracts';
import { codeOfReason } from '@keytrail/rpc/refusal';
import { KeyMissError, missErrorOf, RefusalError } from './errors.ts';

/** The refusal of one item of a call with many, as if it had been a call of its own. `traceId` is that of the call. */
export function refusalOf(
  { reason, message, metadata, miss, retryAfterMs }: KeyRefusal,
  traceId: string,
): RefusalError {
  return new RefusalError(
    {
      code: (codeOfReason as Readonly<Record<string, Code>>)[reason] ?? Code.NotFound,
      reason,
      message,
      metadata,
      miss,
      fields: [],
      retryAfterMs: retryAfterMs > 0 ? retryAfterMs : undefined,
      traceId: miss?.traceId || traceId,
    },
    undefined,
  );
}

/** What asking for a key came to, when it was refused: a miss where it tells of the key, else the refusal. */
export function keyRefusalOf(
  refused: KeyRefusal,
  session: { conversationId: string; sessionId: string },
  traceId: string,
): KeyMissError | RefusalError {
  if (refused.miss !== undefined) return missErrorOf(refused.miss, session);
  if (refused.reason === 'NOT_FOUND_OR_NOT_PERMITTED') {
    return new KeyMissError(session, { cause: refused.reason, recovery: 'NOT_PERMITTED', remedy: 'NONE', traceId });
  }
  return refusalOf(refused, traceId);
}
