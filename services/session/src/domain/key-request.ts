import type { DeviceId } from './device.ts';

export const openStates = ['WAITING_FOR_HOLDER', 'OFFERED'] as const;
export type OpenState = (typeof openStates)[number];
export type KeyRequestState = OpenState | 'FULFILLED' | 'EXPIRED' | 'CANCELLED' | 'UNFULFILLABLE';
export type KeyRequestKind = 'MISSING' | 'REWRAP' | 'REJECTED';
/** Among the requests of one device. */
export type KeyRequestPriority = 'BACKGROUND' | 'FOREGROUND';

/** Why a key request ended; docs/reasons/key-request-ended.md says what each means. */
export type EndedBecause =
  | 'key_delivered'
  | 'expired'
  | 'cancelled_by_requester'
  | 'cancelled_by_operator'
  | 'no_holder_exists'
  | 'all_holders_declined'
  | 'attempts_exhausted'
  | 'requester_not_entitled'
  | 'requester_revoked'
  | 'requester_erased';

export interface KeyRequest {
  readonly keyRequestId: string;
  readonly conversationId: string;
  readonly sessionId: string;
  readonly epoch: bigint;
  readonly requester: DeviceId;
  readonly kind: KeyRequestKind;
  readonly priority: KeyRequestPriority;
  readonly state: KeyRequestState;
  /** Attempt at which this request began; attempts count on over a device's requests for one session. */
  readonly attemptBase: number;
  readonly attempt: number;
  readonly acceptedAttempt: number | undefined;
  readonly holders: number;
  readonly requestedAt: Date;
  readonly nextAttemptAt: Date;
  readonly expiresAt: Date;
  /** When it was told that a holder is wanted, in the current wait. */
  readonly holderWantedAt: Date | undefined;
  /** Since when it waits for its turn with holders that are online; undefined when it does not. */
  readonly queuedAt: Date | undefined;
  readonly endedAt: Date | undefined;
  readonly endedBecause: EndedBecause | undefined;
  readonly version: number;
  readonly traceparent: string;
}

/** A request before its first look. */
export function newKeyRequest(
  of: Pick<
    KeyRequest,
    | 'keyRequestId'
    | 'conversationId'
    | 'sessionId'
    | 'epoch'
    | 'requester'
    | 'kind'
    | 'priority'
    | 'requestedAt'
    | 'expiresAt'
    | 'traceparent'
  >,
): KeyRequest {
  return {
    ...of,
    state: 'WAITING_FOR_HOLDER',
    attemptBase: 0,
    attempt: 0,
    acceptedAttempt: undefined,
    holders: 0,
    nextAttemptAt: of.requestedAt,
    holderWantedAt: undefined,
    queuedAt: undefined,
    endedAt: undefined,
    endedBecause: undefined,
    version: 1,
  };
}

export type KeyRequestEvent =
  | { readonly kind: 'offered'; readonly holders: number; readonly until: Date }
  | { readonly kind: 'offers_stand'; readonly holders: number; readonly until: Date }
  | { readonly kind: 'nobody_online'; readonly holders: number; readonly until: Date }
  | { readonly kind: 'queued'; readonly holders: number; readonly until: Date }
  | { readonly kind: 'postponed'; readonly until: Date }
  | { readonly kind: 'declined' }
  | { readonly kind: 'fulfilled'; readonly attempt: number }
  | { readonly kind: 'expired' }
  | { readonly kind: 'cancelled' }
  | { readonly kind: 'cancelled_by_operator' }
  | { readonly kind: 'requester_erased' }
  | { readonly kind: 'unfulfillable'; readonly because: EndedBecause };

export function isOpen(state: KeyRequestState): state is OpenState {
  return state === 'WAITING_FOR_HOLDER' || state === 'OFFERED';
}

/** What a request becomes by an event. An ended request stays as it is, whatever happens. */
export function advance(request: KeyRequest, event: KeyRequestEvent, now: Date): KeyRequest {
  if (!isOpen(request.state)) return request;
  const next = { ...request, version: request.version + 1 };
  const ended = (state: KeyRequestState, endedBecause: EndedBecause): KeyRequest => ({
    ...next,
    state,
    queuedAt: undefined,
    endedAt: now,
    endedBecause,
  });
  const look = (at: Date): Date => (at < request.expiresAt ? at : request.expiresAt);
  switch (event.kind) {
    case 'offered':
      return {
        ...next,
        state: 'OFFERED',
        attempt: request.attempt + 1,
        holders: event.holders,
        nextAttemptAt: look(event.until),
        holderWantedAt: undefined,
        queuedAt: undefined,
      };
    case 'offers_stand':
      return { ...next, state: 'OFFERED', holders: event.holders, nextAttemptAt: look(event.until) };
    case 'nobody_online':
      return {
        ...next,
        state: 'WAITING_FOR_HOLDER',
        holders: event.holders,
        nextAttemptAt: look(event.until),
        holderWantedAt: request.holderWantedAt ?? now,
        queuedAt: undefined,
      };
    case 'queued':
      return {
        ...next,
        state: 'WAITING_FOR_HOLDER',
        holders: event.holders,
        nextAttemptAt: look(event.until),
        holderWantedAt: undefined,
        queuedAt: request.queuedAt ?? now,
      };
    case 'postponed':
      return { ...next, nextAttemptAt: look(event.until) };
    case 'declined':
      return { ...next, nextAttemptAt: now };
    case 'fulfilled':
      return { ...ended('FULFILLED', 'key_delivered'), acceptedAttempt: event.attempt };
    case 'expired':
      return ended('EXPIRED', 'expired');
    case 'cancelled':
      return ended('CANCELLED', 'cancelled_by_requester');
    case 'cancelled_by_operator':
      return ended('CANCELLED', 'cancelled_by_operator');
    case 'requester_erased':
      return ended('CANCELLED', 'requester_erased');
    case 'unfulfillable':
      return ended('UNFULFILLABLE', event.because);
  }
}

/** A holder as the dispatcher sees it, in the order in which holders are asked. */
export interface HolderView {
  readonly device: DeviceId;
  readonly online: boolean;
  readonly declined: boolean;
  /** It has been offered as many requests of the same requester as may be at once. */
  readonly busy: boolean;
  /** When the last offer of this request to it lapses or lapsed; undefined when it had none. */
  readonly offeredUntil: Date | undefined;
  readonly offersMade: number;
}

export interface OfferPolicy {
  readonly offersAtOnce: number;
  /** How long one offer stands alone before the next holder is asked besides; 0 offers to all that may be asked at once. */
  readonly hedgeMs: number;
  readonly offerMs: number;
  readonly waitMs: number;
  readonly attemptsMax: number;
  /** Envelopes that a device may reject for one session before it is told that nobody can help. */
  readonly rejectionsMax: number;
  /** Offers of one requester that stand with one holder at the same time: of all its requests, and again of those in the foreground. */
  readonly offersPerHolder: number;
}

export type NextStep =
  | {
      readonly kind: 'offer';
      readonly to: readonly DeviceId[];
      readonly lapsesAt: Date;
      readonly event: KeyRequestEvent;
    }
  | { readonly kind: 'stay'; readonly event: KeyRequestEvent }
  | { readonly kind: 'wait'; readonly event: KeyRequestEvent; readonly announce: boolean }
  | { readonly kind: 'end'; readonly event: KeyRequestEvent };

/**
 * What to do about an open request now; `rejections` are the envelopes that its requester rejected before. Holders that have not been asked yet come before those whose offers lapsed unanswered; those
 * who declined are not asked again within the request.
 */
export function nextStep(
  request: KeyRequest,
  holders: readonly HolderView[],
  policy: OfferPolicy,
  now: Date,
  rejections = 0,
): NextStep {
  if (now >= request.expiresAt) return { kind: 'end', event: { kind: 'expired' } };
  if (holders.length === 0) return end('no_holder_exists');
  if (request.kind === 'REJECTED' && rejections >= policy.rejectionsMax) return end('attempts_exhausted');
  const willing = holders.filter(({ declined }) => !declined);
  if (willing.length === 0) return end('all_holders_declined');

  const standing = willing.flatMap(({ offeredUntil }) =>
    offeredUntil !== undefined && offeredUntil > now ? [offeredUntil] : [],
  );
  const room = Math.max(0, policy.offersAtOnce - standing.length);
  const free = willing.filter(
    ({ online, offeredUntil }) => online && (offeredUntil === undefined || offeredUntil <= now),
  );
  const askable = free
    .filter(({ busy }) => !busy)
    .sort((a, b) => a.offersMade - b.offersMade)
    .slice(0, room);
  const attemptsLeft = request.attempt - request.attemptBase < policy.attemptsMax;

  if (askable.length > 0 && attemptsLeft) {
    const lapsesAt = later(now, policy.offerMs);
    // Most offers are answered within milliseconds: a second holder that seals at the same time works for nothing.
    const to = policy.hedgeMs > 0 ? askable.slice(0, 1) : askable;
    const hedge = to.length < askable.length ? [later(now, policy.hedgeMs)] : [];
    const until = earliest([...standing, lapsesAt, ...hedge]);
    return {
      kind: 'offer',
      to: to.map(({ device }) => device),
      lapsesAt,
      event: { kind: 'offered', holders: holders.length, until },
    };
  }
  if (standing.length > 0)
    return { kind: 'stay', event: { kind: 'offers_stand', holders: holders.length, until: earliest(standing) } };
  if (askable.length > 0) return end('attempts_exhausted');
  // Room is made when an offer to such a holder is answered; at the latest when it lapses.
  if (free.length > 0)
    return { kind: 'stay', event: { kind: 'queued', holders: holders.length, until: later(now, policy.offerMs) } };
  return {
    kind: 'wait',
    event: { kind: 'nobody_online', holders: holders.length, until: later(now, policy.waitMs) },
    announce: request.holderWantedAt === undefined,
  };
}

function end(because: EndedBecause): NextStep {
  return { kind: 'end', event: { kind: 'unfulfillable', because } };
}

function later(now: Date, ms: number): Date {
  return new Date(now.getTime() + ms);
}

function earliest(times: readonly Date[]): Date {
  return new Date(Math.min(...times.map((time) => time.getTime())));
}
