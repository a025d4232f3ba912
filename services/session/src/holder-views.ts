import type { CheckEntitlementResponse, DeviceList } from '@keytrail/contracts';
import { type DeviceId, deviceKey } from './domain/device.ts';
import { eligibleHolders, rankHolders } from './domain/holders.ts';
import type { HolderView } from './domain/key-request.ts';
import { entitledUsers, revokedDevices } from './peers.ts';

/**
 * A rejection is a claim that proves nothing: the envelope may have been changed on its way. So its sealer is asked again when nobody
 * else is left, but not without end.
 */
const rejectionsAtMost = 3;

interface HolderRows {
  readonly initiator: DeviceId;
  readonly holders: readonly DeviceId[];
  /** The sealer of each envelope that the requester rejected; a sealer stands once for each. */
  readonly rejected: readonly DeviceId[];
}

/** The ranked holders of a session for one requester, before any peer was asked. */
export function rankedHolders(rows: HolderRows, requester: DeviceId, keyRequestId: string): DeviceId[] {
  return rankHolders(rows.holders, { requester, initiator: rows.initiator, rotateBy: keyRequestId });
}

/** What the dispatcher decides on: the eligible holders in their order, who of them is online, and what they were asked so far. */
export function holderViews(
  ranked: readonly DeviceId[],
  known: {
    readonly entitlement: CheckEntitlementResponse;
    readonly deviceLists: readonly DeviceList[];
    readonly online: ReadonlySet<string>;
    readonly rejected: readonly DeviceId[];
    readonly offers: readonly { readonly device: DeviceId; readonly lapsesAt: Date; readonly declined: boolean }[];
  },
): HolderView[] {
  const rejections = Map.groupBy(known.rejected, deviceKey);
  const offered = Map.groupBy(known.offers, ({ device }) => deviceKey(device));
  const eligible = eligibleHolders(ranked, {
    entitledUsers: entitledUsers(known.entitlement),
    revoked: revokedDevices(known.deviceLists),
  });
  const hasDeclined = (key: string) => (offered.get(key) ?? []).some(({ declined }) => declined);
  const anotherIsLeft = eligible.map(deviceKey).some((key) => !rejections.has(key) && !hasDeclined(key));
  return eligible.map((device) => {
    const key = deviceKey(device);
    const offers = offered.get(key) ?? [];
    const rejected = rejections.get(key)?.length ?? 0;
    return {
      device,
      online: known.online.has(key),
      declined: hasDeclined(key) || (rejected > 0 && (anotherIsLeft || rejected >= rejectionsAtMost)),
      // Whoever plans the offers knows how many stand.
      busy: false,
      offeredUntil: offers.reduce<Date | undefined>(
        (latest, { lapsesAt }) => (latest === undefined || lapsesAt > latest ? lapsesAt : latest),
        undefined,
      ),
      offersMade: offers.length,
    };
  });
}
