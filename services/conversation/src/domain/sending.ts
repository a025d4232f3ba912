import { type HistoryPolicy, RotationDueReason } from '@keytrail/contracts';
import { isEntitled, type MembershipSpan } from './entitlement.ts';

/** Where a conversation stands when a message comes. */
export interface SendingState {
  readonly epoch: bigint;
  /** Messages under earlier epochs are refused: a member left since, or a device of one was revoked. */
  readonly minSendEpoch: bigint;
  readonly rotationDue: RotationDueReason;
}

export type SendingVerdict = 'accepted' | 'rotation-required' | 'not-entitled';

/**
 * Whether a current member may send under the session of an epoch. Earlier epochs are accepted as long as no member has left
 * since, and no member's device was revoked; a member for whom no session has been made yet must wait for the rotation that is due.
 */
export function judgeSending(
  state: SendingState,
  spans: readonly MembershipSpan[],
  session: { readonly epoch: bigint; readonly historyPolicy: HistoryPolicy },
): SendingVerdict {
  if (session.epoch < state.minSendEpoch) return 'rotation-required';
  if (isEntitled(spans, session.historyPolicy, session.epoch)) return 'accepted';
  return session.epoch === state.epoch && state.rotationDue !== RotationDueReason.UNSPECIFIED
    ? 'rotation-required'
    : 'not-entitled';
}
