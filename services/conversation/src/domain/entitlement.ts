import { HistoryPolicy } from '@keytrail/contracts';

/** A membership as a span of epochs. It is empty when it ended before its first epoch. */
export interface MembershipSpan {
  readonly fromEpoch: bigint;
  /** The last epoch of the span; absent while the membership lasts. */
  readonly toEpoch?: bigint | undefined;
}

/** Epochs from `first` up to `last`, both included; without `last` there is no end. */
export interface EpochRange {
  readonly first: bigint;
  readonly last?: bigint | undefined;
}

/**
 * The epochs whose keys a user may have, from all memberships that the user ever had. Own membership: the epochs of each
 * span. Shared history: everything up to the end of the last span.
 */
export function readableEpochs(spans: readonly MembershipSpan[], policy: HistoryPolicy): EpochRange[] {
  if (policy === HistoryPolicy.SHARED) {
    if (spans.length === 0) return [];
    const last = latestEpoch(spans);
    return [last === undefined ? { first: 1n } : { first: 1n, last }];
  }
  return spans
    .filter((span) => span.toEpoch === undefined || span.toEpoch >= span.fromEpoch)
    .map((span) =>
      span.toEpoch === undefined ? { first: span.fromEpoch } : { first: span.fromEpoch, last: span.toEpoch },
    );
}

/** Whether a user with these memberships may have the key of an epoch. */
export function isEntitled(spans: readonly MembershipSpan[], policy: HistoryPolicy, epoch: bigint): boolean {
  return readableEpochs(spans, policy).some(
    ({ first, last }) => epoch >= first && (last === undefined || epoch <= last),
  );
}

export function isMemberNow(spans: readonly MembershipSpan[]): boolean {
  return spans.some((span) => span.toEpoch === undefined);
}

/**
 * The first epoch of a new membership. Without shared history it is the epoch after the current one, whose session will be
 * made for the new member. With shared history it is the current one, unless an earlier membership reaches into it.
 */
export function firstEpochOfNewMember(
  currentEpoch: bigint,
  policy: HistoryPolicy,
  earlier: readonly MembershipSpan[],
): bigint {
  const last = latestEpoch(earlier) ?? 0n;
  return policy === HistoryPolicy.SHARED && last < currentEpoch ? currentEpoch : currentEpoch + 1n;
}

/** Undefined when one of the spans lasts, or when there is none. */
function latestEpoch(spans: readonly MembershipSpan[]): bigint | undefined {
  let latest: bigint | undefined;
  for (const { toEpoch } of spans) {
    if (toEpoch === undefined) return undefined;
    if (latest === undefined || toEpoch > latest) latest = toEpoch;
  }
  return latest;
}
