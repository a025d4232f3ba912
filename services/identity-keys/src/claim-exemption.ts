import type { Client } from '@connectrpc/connect';
import type { Caller } from '@keytrail/auth';
import type { SessionService } from '@keytrail/contracts';
import type { Ref } from '@keytrail/crypto';
import { attr, trace } from '@keytrail/telemetry';
import type { ClaimLimits, Payment } from './claim-limits.ts';
import { exemptionCharge } from './domain/claim-bill.ts';

export type SessionPeer = Pick<Client<typeof SessionService>, 'checkOffer'>;

/** What a key request may save one claim: it is exempt from the limits and the policy. */
export interface ClaimExemption {
  /**
   * Whether the claim serves a key request, and the holder has exempt claims left for it: there are few, as one fulfilment needs one. Paid for once,
   * however often it is asked. Throws PEER_UNAVAILABLE.
   */
  grant(): Promise<boolean>;
  /** True after `grant` said so. */
  readonly granted: boolean;
  /** Gives the exemption back; never throws. */
  refund(): Promise<void>;
}

interface Served {
  readonly keyRequestId: string;
  /** What is claimed. */
  readonly devices: readonly Ref[];
}

export function createClaimExemption(
  { session, limits }: { readonly session: SessionPeer; readonly limits: ClaimLimits },
  caller: Caller,
  served: Served,
): ClaimExemption {
  let paid: Extract<Payment, { allowed: true }> | undefined;
  return {
    get granted() {
      return paid !== undefined;
    },
    async grant() {
      if (paid) return true;
      const holder = await holderFor(session, caller, served);
      if (holder === undefined) return false;
      const payment = await limits.spend([exemptionCharge(served.keyRequestId, holder)]);
      if (!payment.allowed) return false;
      paid = payment;
      trace.getActiveSpan()?.setAttribute(attr.claimExempt, true);
      return true;
    },
    async refund() {
      await paid?.refund();
      paid = undefined;
    },
  };
}

/** The calling device when the key request is open, offered to it, and made by the only device that is claimed. */
async function holderFor(
  session: SessionPeer,
  caller: Caller,
  { keyRequestId, devices }: Served,
): Promise<Ref | undefined> {
  const [device] = devices;
  if (keyRequestId === '' || caller.kind !== 'device' || device === undefined || devices.length > 1) return undefined;
  const holder = { userId: caller.userId, deviceId: caller.deviceId };
  const { offered, requester } = await session.checkOffer({ keyRequestId, holder });
  const serves = offered && requester?.userId === device.userId && requester.deviceId === device.deviceId;
  return serves ? holder : undefined;
}
