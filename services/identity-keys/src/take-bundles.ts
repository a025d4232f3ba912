import { type Call, refuse } from '@keytrail/rpc';
import { type Database, type FencePass, isDatabaseError, type RestoreFence } from '@keytrail/storage';
import { attr, DatabaseUnfit, isDatabaseAway, trace } from '@keytrail/telemetry';
import type { ClaimExemption, SessionPeer } from './claim-exemption.ts';
import type { ClaimLimits, Payment } from './claim-limits.ts';
import type { ClaimPolicy } from './claim-policy.ts';
import { type Bill, billOf, bucketAt, type ClaimRates } from './domain/claim-bill.ts';
import { never } from './domain/gcra.ts';
import type { DrainSignals } from './drain-signals.ts';
import type { LowPrekeys } from './low-prekeys.ts';
import type { Sharing } from './sharing.ts';
import {
  type Claim,
  type ClaimedRow,
  claimPrekeyBundles,
  FenceNotPassed,
  type RecordedClaim,
  readClaim,
} from './store/claims.ts';

export interface TakeBundlesParts {
  readonly db: Database;
  readonly lowPrekeys: LowPrekeys;
  readonly lowPrekeysBelow: number;
  readonly sharing: Sharing;
  readonly policy: ClaimPolicy;
  readonly rates: ClaimRates;
  readonly limits: ClaimLimits;
  readonly signals: DrainSignals;
  readonly session: SessionPeer;
  readonly fence: RestoreFence;
}

export interface Taking extends Claim {
  readonly exemption: ClaimExemption;
  /** What the caller pays for: a device each, and something for each user asked about. */
  readonly bundles: number;
  /** Positions in `devices`, from 1, that the policy keeps from the caller. */
  readonly notPermitted?: readonly number[];
}

/** Users whom the policy keeps from the caller; none when the claim serves a key request. Throws PEER_UNAVAILABLE. */
export async function forbiddenUsers(
  policy: ClaimPolicy,
  { caller }: Call,
  { userIds, exemption }: { readonly userIds: readonly string[]; readonly exemption: ClaimExemption },
): Promise<ReadonlySet<string>> {
  const forbidden = await policy.forbidden(caller, userIds);
  return forbidden.size > 0 && (await exemption.grant()) ? new Set() : forbidden;
}

/**
 * Takes the bundles of a claim within the limits. What was paid is given back when nothing was taken: the claim failed, or was recorded
 * before. A repetition is answered also when the limits are reached.
 *
 * Throws LIMIT_EXCEEDED, PEER_UNAVAILABLE, DATABASE_RESTORED, ClaimIdReused, DeviceListsMoved.
 */
export async function takeBundles(parts: TakeBundlesParts, call: Call, taking: Taking): Promise<RecordedClaim> {
  const { db, lowPrekeysBelow: lowBelow, signals } = parts;
  const paid = await pay(parts, call, taking);
  let taken: RecordedClaim;
  if (Array.isArray(paid)) {
    taken = { rows: paid, repeated: true };
  } else {
    try {
      taken = await passing(parts.fence, (pass) =>
        claimPrekeyBundles(db, { ...taking, pass }, { lowBelow, signal: call.signal }),
      );
    } catch (error) {
      await paid.refund();
      throw error;
    }
    if (taken.repeated) await paid.refund();
  }
  const outcome = taken.repeated ? 'repeated' : 'taken';
  trace.getActiveSpan()?.setAttribute(attr.claimOutcome, outcome);
  signals.claimed(outcome);
  await parts.lowPrekeys.tell(lowDevices(taken.rows));
  if (!taken.repeated)
    await signals.lastResort(taking.devices.filter((_, i) => isNumber(taken.rows[i]?.last_resort_prekey_id)));
  return taken;
}

/**
 * Claims from the database that this process knows. When it is another one, as after each restart of its server, where it stands is looked up
 * first; what went back in time is dealt with by then, or the claim has to wait.
 */
async function passing<T>(fence: RestoreFence, claim: (pass: FencePass) => Promise<T>): Promise<T> {
  for (let attempt = 0; attempt < 3; attempt += 1) {
    if (!fence.pass) await lookAt(fence);
    const { pass } = fence;
    if (!pass) break;
    try {
      return await claim(pass);
    } catch (error) {
      if (!(error instanceof FenceNotPassed)) throw error;
      await lookAt(fence);
    }
  }
  throw refuse('DATABASE_RESTORED', 'the database went back in time, or that cannot be ruled out: claims wait', {
    metadata: { service: 'identity-keys' },
    retryAfterMs: 1_000,
  });
}

/** What keeps a restore from being dealt with is in the log of the rounds; that the database does not answer, or does not fit, is the caller's to know. */
async function lookAt(fence: RestoreFence): Promise<void> {
  try {
    await fence.look();
  } catch (error) {
    if (isDatabaseError(error) || isDatabaseAway(error) || error instanceof DatabaseUnfit) throw error;
  }
}

/** The payment, or the rows of the claim when it was recorded before and cannot be paid for again. */
async function pay(
  parts: TakeBundlesParts,
  call: Call,
  taking: Taking,
): Promise<Extract<Payment, { allowed: true }> | ClaimedRow[]> {
  const { sharing, rates, limits } = parts;
  const { caller } = call;
  if (caller.kind !== 'device') return nothingToPay;
  const { exemption } = taking;
  if (exemption.granted) return exempt(exemption);
  const { userId } = caller;
  const { bundles, notPermitted = [] } = taking;
  const kept = new Set(notPermitted);
  const devices = kept.size === 0 ? taking.devices : taking.devices.filter((_, i) => !kept.has(i + 1));
  const targets = devices.map((device) => device.userId);
  const billFor = (known: ReadonlySet<string>) => billOf(rates, { userId, bundles, devices, known });

  let bill = billFor(sharing.rememberedFor(caller, targets));
  let payment: Payment;
  try {
    payment = await limits.spend(bill);
  } catch (error) {
    const recorded = await recordedBefore(parts, taking);
    if (recorded) return recorded;
    throw error;
  }
  if (payment.allowed) return payment;
  const recorded = await recordedBefore(parts, taking);
  if (recorded) return recorded;
  if (await exemption.grant()) return exempt(exemption);
  if (bucketAt(bill, payment.refusedBy).item.scope === 'target') {
    // Only now it matters who of them is a stranger.
    bill = billFor(await sharing.knownTo(caller, targets));
    payment = await limits.spend(bill);
    if (payment.allowed) return payment;
  }
  throw await refuseLimited(parts, bill, payment);
}

const nothingToPay = { allowed: true, refund: async () => {} } as const;

function exempt(exemption: ClaimExemption) {
  return { allowed: true, refund: () => exemption.refund() } as const;
}

async function recordedBefore(parts: TakeBundlesParts, taking: Taking): Promise<ClaimedRow[] | undefined> {
  return readClaim(parts.db, taking, { lowBelow: parts.lowPrekeysBelow });
}

async function refuseLimited(
  { signals }: TakeBundlesParts,
  bill: Bill,
  { refusedBy, retryAfterUs }: { readonly refusedBy: number; readonly retryAfterUs: number },
) {
  const { item, target } = bucketAt(bill, refusedBy);
  const { scope, rate, cost } = item;
  trace.getActiveSpan()?.setAttributes({ [attr.claimOutcome]: 'limited', [attr.claimLimitedBy]: scope });
  signals.claimed('limited');
  await signals.limited(scope, target);
  const perHour = Math.round(3_600_000_000 / rate.intervalUs);
  const limit = `${perHour} bundles an hour, ${rate.burst} at once`;
  const metadata = { limit, scope, ...(target && { user_id: target.userId, device_id: target.deviceId }) };
  if (retryAfterUs === never)
    return refuse('LIMIT_EXCEEDED', `${cost} bundles are more than ${limit}: ask for fewer`, { metadata });
  return refuse('LIMIT_EXCEEDED', `more than ${limit}`, { metadata, retryAfterMs: retryAfterUs / 1000 });
}

function lowDevices(rows: readonly ClaimedRow[]) {
  return rows.flatMap(({ low, device_number, prekeys_added }) =>
    low && device_number !== null && prekeys_added !== null
      ? [{ deviceNumber: device_number, prekeysAdded: prekeys_added }]
      : [],
  );
}

function isNumber(value: bigint | null | undefined): boolean {
  return value !== null && value !== undefined;
}
