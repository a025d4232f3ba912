import { type DeviceId, deviceKey, sameDevice } from './device.ts';

/** The users of holders who are asked about in one call to a peer. */
export const holderUsersAtMost = 999;

/**
 * The devices that could have the key of a session, in the order in which they are asked: the requester's own other devices, the
 * initiator, then the others, rotated by the request so that not always the same ones are asked first.
 */
export function rankHolders(
  holders: readonly DeviceId[],
  of: { readonly requester: DeviceId; readonly initiator: DeviceId; readonly rotateBy?: string },
): DeviceId[] {
  const byKey = new Map([of.initiator, ...holders].map((holder) => [deviceKey(holder), holder]));
  byKey.delete(deviceKey(of.requester));
  const all = [...byKey.values()];
  const own = all.filter(({ userId }) => userId === of.requester.userId);
  const rest = all.filter(({ userId }) => userId !== of.requester.userId);
  const initiator = rest.filter((holder) => sameDevice(holder, of.initiator));
  const others = rest.filter((holder) => !sameDevice(holder, of.initiator));
  const start = others.length === 0 ? 0 : Number.parseInt((of.rotateBy ?? '0').slice(0, 8), 16) % others.length;
  return [...own, ...initiator, ...others.slice(start), ...others.slice(0, start)];
}

/** The users to ask about, the first ranked first. */
export function holderUsers(holders: readonly DeviceId[], most = holderUsersAtMost): string[] {
  return [...new Set(holders.map(({ userId }) => userId))].slice(0, most);
}

/** Of the ranked holders, those who may help: still entitled, and not known to be revoked. */
export function eligibleHolders(
  ranked: readonly DeviceId[],
  facts: { readonly entitledUsers: ReadonlySet<string>; readonly revoked: ReadonlySet<string> },
): DeviceId[] {
  return ranked.filter((holder) => facts.entitledUsers.has(holder.userId) && !facts.revoked.has(deviceKey(holder)));
}
