import type { Database, Transaction } from '@keytrail/storage';
import {
  attr,
  contextFromTraceparent,
  type Logger,
  linkFromTraceparent,
  SpanKind,
  type SpanSettings,
  trace,
  withSpan,
} from '@keytrail/telemetry';
import { type DeviceId, deviceKey } from './domain/device.ts';
import {
  advance,
  type HolderView,
  type KeyRequest,
  type KeyRequestEvent,
  type OfferPolicy,
} from './domain/key-request.ts';
import { type Look, type Planned, type StandingOffers, shareRoom } from './domain/share-room.ts';
import { holderViews, rankedHolders } from './holder-views.ts';
import { announceDue, announceEnd, announceHolderWanted, announceOffers } from './key-request-events.ts';
import { countMade, countPostponed, measureFirstOffer, type PostponedBecause } from './key-request-metrics.ts';
import { askPeers, entitledUsers, findDevice, type PeerAnswers, type Peers } from './peers.ts';
import {
  type HolderRows,
  insertKeyRequests,
  insertOffers,
  type NewOffer,
  readHolders,
  saveKeyRequests,
} from './store/key-requests.ts';
import { callNextInQueue, lockRequesters, readRequesterLoad } from './store/requesters.ts';

export interface Dispatcher {
  readonly db: Database;
  readonly peers: Peers;
  readonly policy: OfferPolicy;
  readonly log: Logger;
  /** Whether an offer that is made now would be heard of: false while events do not get out. */
  readonly isHeard: () => boolean;
}

/** How long a claimed request is left to whoever claimed it, and how soon one is looked at again whose peers could not be asked, or whose offers nobody would hear of. */
export const claimLeaseMs = 5_000;
const postponedMs = 1_000;

/** Looks at claimed requests, those of each requester together, those of different ones side by side. */
export async function dispatchClaimed(dispatcher: Dispatcher, requests: readonly KeyRequest[]): Promise<void> {
  const ofRequester = Map.groupBy(requests, ({ requester }) => deviceKey(requester));
  const looks = await Promise.allSettled(
    [...ofRequester.values()].map((several) => dispatchKeyRequests(dispatcher, several)),
  );
  for (const look of looks)
    if (look.status === 'rejected') dispatcher.log.error({ err: look.reason }, 'key requests could not be dispatched');
}

/**
 * Looks at claimed requests of one requester and takes the next step of each: offers it, lets it wait, or ends it. A decision is void when
 * its request changed meanwhile; whoever changed it has seen to its next look.
 */
export function dispatchKeyRequests(dispatcher: Dispatcher, requests: readonly KeyRequest[]): Promise<void> {
  const [first] = requests;
  if (!first) return Promise.resolve();
  return withSpan(
    requests.length === 1 ? 'dispatch key request' : 'dispatch key requests',
    {
      kind: SpanKind.INTERNAL,
      attributes:
        requests.length === 1
          ? { [attr.keyRequestId]: first.keyRequestId, [attr.attempt]: first.attempt }
          : { [attr.keyRequestsCount]: requests.length },
      ...traceOf(requests, first),
    },
    async () => {
      try {
        await dispatch(dispatcher, first.requester, requests);
      } catch (error) {
        countPostponed(requests.length, 'fault');
        throw error;
      }
    },
  );
}

/** Up to this age a request is dispatched in the trace that it was made in; later in one of its own, with a link. */
const sameTraceMs = 15 * 60 * 1000;
const linksAtMost = 16;

/** What lets a request go on is often of another trace (a holder attaches, another declines): that one is linked. */
function traceOf(requests: readonly KeyRequest[], first: KeyRequest): Pick<SpanSettings, 'parent' | 'links'> {
  const own = [...new Set(requests.map(({ traceparent }) => traceparent))]
    .slice(0, linksAtMost)
    .flatMap((traceparent) => {
      const link = linkFromTraceparent(traceparent);
      return link ? [{ traceparent, link }] : [];
    });
  const [only] = own;
  const traces = new Set(own.map(({ link }) => link.context.traceId));
  if (!only) return {};
  if (traces.size > 1) return { links: own.map(({ link }) => link) };
  const active = trace.getActiveSpan()?.spanContext();
  if (active?.traceId === only.link.context.traceId) return {};
  if (Date.now() - first.requestedAt.getTime() > sameTraceMs) return { links: [only.link] };
  return { parent: contextFromTraceparent(only.traceparent), ...(active && { links: [{ context: active }] }) };
}

async function dispatch(dispatcher: Dispatcher, requester: DeviceId, requests: readonly KeyRequest[]): Promise<void> {
  const { db, policy, log } = dispatcher;
  const found = await readHolders(db, requests);
  const now = [...found.values()][0]?.now ?? new Date();
  const over: Ending[] = [];
  const asked: { request: KeyRequest; rows: HolderRows }[] = [];
  for (const request of requests) {
    const rows = found.get(request.keyRequestId);
    // Purged or erased since it was claimed.
    if (!rows) continue;
    if (rows.now >= request.expiresAt) over.push({ request, event: { kind: 'expired' } });
    else if (rows.requesterRevoked)
      over.push({ request, event: { kind: 'unfulfillable', because: 'requester_revoked' } });
    else asked.push({ request, rows });
  }

  const { looks, endings, postponed } = await lookAtHolders(dispatcher, requester, asked);
  over.push(...endings);
  const taken = await db.transaction(async (tx) => {
    lockRequesters(tx, [requester]);
    if (postponed) await postponeRequests(tx, postponed, now);
    const ended = await endRequests(tx, over, now);
    const steps = await takeSteps(tx, requester, looks, policy, now);
    if (ended.length > 0) await callNext(tx, requester, ended.length);
    return [...ended, ...steps];
  });
  for (const { keyRequestId, state, attempt, holders } of taken)
    log.info({ keyRequestId, state, attempt, holders }, 'key request dispatched');
}

/** Requests that cannot be looked at now. */
interface Postponed {
  readonly requests: readonly KeyRequest[];
  readonly because: PostponedBecause;
}

interface Ending {
  readonly request: KeyRequest;
  readonly event: KeyRequestEvent;
}

/** What the peers say about the holders of each request. */
async function lookAtHolders(
  { peers, log, isHeard }: Dispatcher,
  requester: DeviceId,
  asked: readonly { readonly request: KeyRequest; readonly rows: HolderRows }[],
): Promise<{ looks: Look[]; endings: Ending[]; postponed?: Postponed }> {
  const looks: Look[] = [];
  const endings: Ending[] = [];
  const requests = asked.map(({ request }) => request);
  // An offer that no holder hears of would use up an attempt: what was offered before still waits in the outbox.
  if (asked.length === 0) return { looks, endings };
  if (!isHeard()) return { looks, endings, postponed: { requests, because: 'not_heard' } };

  const sessions = asked.map(({ request, rows }) => ({
    conversationId: request.conversationId,
    sessionId: request.sessionId,
    ranked: rankedHolders(rows, requester, request.keyRequestId),
  }));
  const answers = await askPeers(peers, requester, sessions, log);
  for (const [place, { request, rows }] of asked.entries()) {
    const { entitlement, deviceLists, online } = answers[place] as PeerAnswers;
    if (!entitlement.known || !deviceLists.known || !online.known)
      return { looks: [], endings: [], postponed: { requests, because: 'peer_away' } };
    const requesterEntitled = entitledUsers(entitlement.value).has(requester.userId);
    const device = findDevice(deviceLists.value, requester);
    if (!requesterEntitled)
      endings.push({ request, event: { kind: 'unfulfillable', because: 'requester_not_entitled' } });
    else if (device?.revokedAt !== undefined)
      endings.push({ request, event: { kind: 'unfulfillable', because: 'requester_revoked' } });
    else
      looks.push({
        request,
        rejections: rows.rejected.length,
        views: holderViews(sessions[place]?.ranked ?? [], {
          entitlement: entitlement.value,
          deviceLists: deviceLists.value,
          online: online.value,
          rejected: rows.rejected,
          offers: rows.offers,
        }),
      });
  }
  return { looks, endings };
}

async function postponeRequests(tx: Transaction, { requests, because }: Postponed, now: Date): Promise<void> {
  const until = new Date(now.getTime() + postponedMs);
  const saved = await saveKeyRequests(
    tx,
    requests.map((request) => ({
      request: advance(request, { kind: 'postponed', until }, now),
      version: request.version,
    })),
  );
  tx.afterCommit(() => countPostponed(saved.size, because));
}

async function endRequests(tx: Transaction, over: readonly Ending[], now: Date): Promise<KeyRequest[]> {
  if (over.length === 0) return [];
  const ends = over.map(({ request, event }) => ({ request: advance(request, event, now), version: request.version }));
  const saved = await saveKeyRequests(tx, ends);
  const ended = ends.map(({ request }) => request).filter(({ keyRequestId }) => saved.has(keyRequestId));
  for (const request of ended) await announceEnd(tx, request);
  return ended;
}

/** Decides and writes the next steps. The requests as they are then; without those that somebody else changed meanwhile. */
async function takeSteps(
  tx: Transaction,
  requester: DeviceId,
  looks: readonly Look[],
  policy: OfferPolicy,
  now: Date,
): Promise<KeyRequest[]> {
  if (looks.length === 0) return [];
  const { standing } = await readRequesterLoad(tx, requester);
  const planned = shareRoom(looks, standing, policy, now);
  const saved = await saveKeyRequests(
    tx,
    planned.map(({ look, next }) => ({ request: next, version: look.request.version })),
  );
  const taken = planned.filter(({ next }) => saved.has(next.keyRequestId));
  insertOffers(tx, taken.flatMap(newOffers), now);
  await announceSteps(tx, taken, now);
  return taken.map(({ next }) => next);
}

function newOffers({ next, offers }: Planned): NewOffer[] {
  return offers.map((offer) => ({ ...offer, keyRequestId: next.keyRequestId }));
}

/** A request to be opened: its first step is taken at once when the views of its holders are known, else it is due for the dispatcher. */
export interface Opening {
  readonly request: KeyRequest;
  readonly views: readonly HolderView[] | undefined;
  readonly rejections: number;
}

/**
 * Stores new requests of one device, the first steps taken that can be. Those opened: not those for whose session the device has an open one.
 * The device is locked (`lockRequesters`), and `standing` was read then.
 */
export async function openKeyRequests(
  tx: Transaction,
  requester: DeviceId,
  openings: readonly Opening[],
  {
    policy,
    writerBuild,
    standing,
    now,
  }: {
    readonly policy: OfferPolicy;
    readonly writerBuild: string;
    readonly standing: StandingOffers;
    readonly now: Date;
  },
): Promise<KeyRequest[]> {
  const looks = openings.flatMap(({ views, ...opening }) => (views ? [{ ...opening, views }] : []));
  const planned = shareRoom(looks, standing, policy, now);
  const due = openings.flatMap(({ request, views }) => (views ? [] : [request]));
  const opened = await insertKeyRequests(
    tx,
    requester,
    [...planned.map(({ next }) => next), ...due],
    planned.flatMap(newOffers),
    { offeredAt: now, writerBuild },
  );
  const stored = new Map(opened.map((request) => [request.keyRequestId, request]));
  await announceSteps(
    tx,
    planned.flatMap((plan) => {
      const next = stored.get(plan.next.keyRequestId);
      return next ? [{ ...plan, next }] : [];
    }),
    now,
  );
  countMade(tx, opened);
  const firstDue = due.find(({ keyRequestId }) => stored.has(keyRequestId));
  if (firstDue) await announceDue(tx, firstDue);
  return opened;
}

/** Stores one new request, due for the dispatcher at once. Undefined when the device has an open request for the session. */
export async function openKeyRequest(
  tx: Transaction,
  request: KeyRequest,
  views: readonly HolderView[] | undefined,
  { policy, writerBuild }: { readonly policy: OfferPolicy; readonly writerBuild: string },
): Promise<KeyRequest | undefined> {
  lockRequesters(tx, [request.requester]);
  const { standing } = await readRequesterLoad(tx, request.requester);
  const now = request.requestedAt;
  const openings = [{ request, views, rejections: 0 }];
  return (await openKeyRequests(tx, request.requester, openings, { policy, writerBuild, standing, now }))[0];
}

/** Lets those go on that wait for their turn, when offers of their requester do not stand any more. The requester is locked. */
export async function callNext(tx: Transaction, requester: DeviceId, room: number): Promise<void> {
  const [first] = await callNextInQueue(tx, requester, room);
  if (first) await announceDue(tx, first);
}

async function announceSteps(tx: Transaction, taken: readonly Planned[], now: Date): Promise<void> {
  await announceOffers(
    tx,
    taken.flatMap(({ next, offers }) => offers.map(({ to }) => ({ request: next, to }))),
  );
  for (const { next, step, look, offers } of taken) {
    if (offers.length > 0 && look.request.attempt === look.request.attemptBase) measureFirstOffer(tx, next, now);
    if (step.kind === 'wait' && step.announce) await announceHolderWanted(tx, next, willing(look.views));
    if (step.kind === 'end') await announceEnd(tx, next);
  }
}

function willing(views: readonly HolderView[]): DeviceId[] {
  return views.filter(({ declined }) => !declined).map(({ device }) => device);
}
