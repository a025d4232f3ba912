import type { Ref } from '@keytrail/crypto';
import type { Rate } from './gcra.ts';

export type Scope = 'caller' | 'target' | 'pair';

/** The limits on claims; a scope without a rate is not limited. */
export type ClaimRates = Readonly<Record<Scope, Rate | undefined>>;

/** Buckets, each of which pays the same. */
export interface Charge {
  readonly rate: Rate;
  readonly cost: number;
  /** One per bucket, as the limits keep them. */
  readonly buckets: readonly string[];
}

/** A charge of one scope. */
export interface BillItem extends Charge {
  readonly scope: Scope;
  /** The device that each bucket is about; empty for the caller's. */
  readonly targets: readonly Ref[];
}

/** What a claim costs. */
export type Bill = readonly BillItem[];

/**
 * The calling user pays for all bundles together. Each device has a budget that strangers share, and one for each user who claims from it.
 * A slash and a space are in no id.
 */
export function billOf(
  rates: ClaimRates,
  claim: {
    readonly userId: string;
    /** Bundles asked for. */
    readonly bundles: number;
    readonly devices: readonly Ref[];
    /** Users who share a conversation with the caller, or are the caller: their devices' common budget is not touched. */
    readonly known: ReadonlySet<string>;
  },
): Bill {
  const { userId, bundles, devices, known } = claim;
  const ofStrangers = devices.filter((device) => !known.has(device.userId));
  const ofOthers = devices.filter((device) => device.userId !== userId);
  const items: (Omit<BillItem, 'rate'> & { rate: Rate | undefined })[] = [
    { scope: 'caller', rate: rates.caller, cost: bundles, buckets: [`c ${userId}`], targets: [] },
    {
      scope: 'target',
      rate: rates.target,
      cost: 1,
      buckets: ofStrangers.map((d) => `t ${nameOf(d)}`),
      targets: ofStrangers,
    },
    {
      scope: 'pair',
      rate: rates.pair,
      cost: 1,
      buckets: ofOthers.map((d) => `p ${userId} ${nameOf(d)}`),
      targets: ofOthers,
    },
  ];
  return items.flatMap((item) =>
    item.rate !== undefined && item.buckets.length > 0 && item.cost > 0 ? [{ ...item, rate: item.rate }] : [],
  );
}

// One fulfilment takes one claim; a lost device and a slip leave room for two more. None comes back while the request lives.
const exemptClaims: Rate = { intervalUs: 7 * 24 * 3_600_000_000, burst: 3 };

/** One exempt claim by a holder for a key request (UUID). */
export function exemptionCharge(keyRequestId: string, holder: Ref): Charge {
  return { rate: exemptClaims, cost: 1, buckets: [`e ${keyRequestId.toLowerCase()} ${nameOf(holder)}`] };
}

/** Which item and bucket stands at a position when all buckets of a bill are counted through. */
export function bucketAt(bill: Bill, position: number): { readonly item: BillItem; readonly target: Ref | undefined } {
  let left = position;
  for (const item of bill) {
    if (left < item.buckets.length) return { item, target: item.targets[left] };
    left -= item.buckets.length;
  }
  throw new Error('a position beyond the bill');
}

function nameOf({ userId, deviceId }: Ref): string {
  return `${userId}/${deviceId}`;
}
