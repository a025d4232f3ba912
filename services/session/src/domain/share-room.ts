import { type DeviceId, deviceKey } from './device.ts';
import { advance, type HolderView, type KeyRequest, type NextStep, nextStep, type OfferPolicy } from './key-request.ts';

/** How many offers of one requester stand with each holder, by deviceKey. */
export type StandingOffers = ReadonlyMap<string, { readonly foreground: number; readonly all: number }>;

/** An open request, who could help, and how many envelopes its requester rejected before. */
export interface Look {
  readonly request: KeyRequest;
  readonly views: readonly HolderView[];
  readonly rejections: number;
}

export interface PlannedOffer {
  readonly to: DeviceId;
  readonly turn: number;
  readonly lapsesAt: Date;
}

export interface Planned {
  readonly look: Look;
  readonly step: NextStep;
  /** The request as the step leaves it. */
  readonly next: KeyRequest;
  readonly offers: readonly PlannedOffer[];
}

/**
 * The next steps of requests of one requester, which share the room that their holders have for it: what is in the foreground first, then
 * the oldest. What is in the foreground does not wait for what is not: of the offers that stand, it minds only those like it.
 */
export function shareRoom(
  looks: readonly Look[],
  standing: StandingOffers,
  policy: OfferPolicy,
  now: Date,
): readonly Planned[] {
  const room = new Map([...standing].map(([holder, counts]) => [holder, { ...counts }]));
  return inTurn(looks).map((look) => {
    const { request } = look;
    const foreground = request.priority === 'FOREGROUND';
    const standingWith = (holder: DeviceId) => {
      const counts = room.get(deviceKey(holder));
      return (foreground ? counts?.foreground : counts?.all) ?? 0;
    };
    const views = look.views.map((view) => ({ ...view, busy: standingWith(view.device) >= policy.offersPerHolder }));
    const step = nextStep(request, views, policy, now, look.rejections);
    const offers =
      step.kind === 'offer' ? step.to.map((to) => ({ to, turn: standingWith(to) + 1, lapsesAt: step.lapsesAt })) : [];
    for (const { to } of offers) {
      const counts = room.get(deviceKey(to)) ?? { foreground: 0, all: 0 };
      room.set(deviceKey(to), { foreground: counts.foreground + (foreground ? 1 : 0), all: counts.all + 1 });
    }
    return { look, step, next: advance(request, step.event, now), offers };
  });
}

function inTurn(looks: readonly Look[]): readonly Look[] {
  return looks.toSorted(({ request: a }, { request: b }) => {
    if (a.priority !== b.priority) return a.priority === 'FOREGROUND' ? -1 : 1;
    return a.requestedAt.getTime() - b.requestedAt.getTime();
  });
}
