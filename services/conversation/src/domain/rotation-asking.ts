import type { NamedDevice } from './completeness.ts';

/** A device that was asked to make a rotation, as it was asked last. */
export interface DeviceAsked {
  readonly device: NamedDevice;
  readonly askedAt: Date;
  readonly askedUntil: Date;
  readonly times: number;
  /** It declined, or the next one was asked after it. */
  readonly ended: boolean;
}

export interface AskingPolicy {
  /** How long a device has to make the rotation. */
  readonly askMs: number;
  /** How long to wait when nobody can be asked, doubled with each wait, and before a device is asked again, doubled with each time. */
  readonly retryMs: number;
}

export interface AskingView {
  /** Devices that are online and may make the rotation: of members, not revoked. */
  readonly candidates: readonly NamedDevice[];
  readonly asks: readonly DeviceAsked[];
  /** Devices that are likely to be at hand, the likeliest first. */
  readonly likely: readonly NamedDevice[];
  /** Looks in a row that found nobody. */
  readonly waits: number;
  readonly now: Date;
}

export type AskingStep =
  /** The device that is asked has time until then. */
  | { readonly kind: 'leave'; readonly at: Date }
  | { readonly kind: 'ask'; readonly device: NamedDevice; readonly until: Date }
  | { readonly kind: 'wait'; readonly until: Date };

const mostDoublings = 7;

/**
 * Who is asked next to make a rotation. One at a time: who is being asked is left alone until its time is over, unless it cannot make the
 * rotation any more. First those who were never asked, the likely ones before the others; then those who were, the longest ago first,
 * each later with every time. When nobody is there, the next look waits longer and longer; a device that attaches makes it sooner.
 */
export function nextAskingStep(view: AskingView, { askMs, retryMs }: AskingPolicy): AskingStep {
  const { candidates, asks, likely, waits, now } = view;
  const can = new Set(candidates.map(deviceKey));
  const live = asks.find(({ ended }) => !ended);
  if (live && live.askedUntil > now && can.has(deviceKey(live.device))) return { kind: 'leave', at: live.askedUntil };

  const asked = new Map(asks.map((one) => [deviceKey(one.device), one]));
  const rank = new Map(likely.map((device, index) => [deviceKey(device), likely.length - index]));
  const until = new Date(now.getTime() + askMs);
  const fresh = candidates
    .filter((device) => !asked.has(deviceKey(device)))
    .sort((a, b) => (rank.get(deviceKey(b)) ?? 0) - (rank.get(deviceKey(a)) ?? 0));
  if (fresh[0]) return { kind: 'ask', device: fresh[0], until };

  const again = asks
    .filter(({ device }) => can.has(deviceKey(device)))
    .map(({ device, askedAt, times }) => ({ device, from: askedAt.getTime() + doubled(retryMs, times - 1) }))
    .sort((a, b) => a.from - b.from);
  const [first] = again;
  if (first && first.from <= now.getTime()) return { kind: 'ask', device: first.device, until };
  const idle = now.getTime() + doubled(retryMs, waits);
  return { kind: 'wait', until: new Date(first ? Math.min(first.from, idle) : idle) };
}

function doubled(ms: number, times: number): number {
  return ms * 2 ** Math.min(times, mostDoublings);
}

/** Neither id has a blank. */
export function deviceKey({ userId, deviceId }: NamedDevice): string {
  return `${userId} ${deviceId}`;
}
