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

/** The epochs from this one on have this history policy, up to the next start. */
export interface PolicyStart {
  readonly fromEpoch: bigint;
  readonly policy: HistoryPolicy;
}

/**
 * The epochs whose keys a user may have, from all memberships that the user ever had: those of each span, and of the epochs whose headers share
 * history all up to the end of the last span. The ranges are in order and do not overlap.
 */
export function readableEpochs(spans: readonly MembershipSpan[], policies: readonly PolicyStart[]): EpochRange[] {
  if (spans.length === 0) return [];
  const end = latestEpoch(spans);
  const shared = policies.flatMap(({ fromEpoch: first, policy }, i): EpochRange[] => {
    const next = policies[i + 1]?.fromEpoch;
    const last = next === undefined ? end : end === undefined || next - 1n < end ? next - 1n : end;
    return policy === HistoryPolicy.SHARED ? [{ first, last }] : [];
  });
  const own = spans.map(({ fromEpoch, toEpoch }): EpochRange => ({ first: fromEpoch, last: toEpoch }));
  return merged([...own, ...shared].filter(({ first, last }) => last === undefined || last >= first));
}

function merged(ranges: readonly EpochRange[]): EpochRange[] {
  const apart: { first: bigint; last?: bigint }[] = [];
  for (const { first, last } of [...ranges].sort((a, b) => (a.first < b.first ? -1 : 1))) {
    const before = apart.at(-1);
    if (before === undefined || (before.last !== undefined && first > before.last + 1n)) {
      apart.push(last === undefined ? { first } : { first, last });
    } else if (last === undefined) delete before.last;
    else if (before.last !== undefined && last > before.last) before.last = last;
  }
  return apart;
}

/** Whether a user with these memberships may have the key of an epoch, under the policy that the epoch's own header names. */
export function isEntitled(spans: readonly MembershipSpan[], policy: HistoryPolicy, epoch: bigint): boolean {
  return readableEpochs(spans, [{ fromEpoch: 1n, policy }]).some(
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
