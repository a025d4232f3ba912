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
import type { DeviceId } from './domain/device.ts';
import {
  advance,
  type HolderView,
  isOpen,
  type KeyRequest,
  type NextStep,
  nextStep,
  type OfferPolicy,
} from './domain/key-request.ts';
import { holderViews, rankedHolders } from './holder-views.ts';
import { announceDue, announceEnd, announceHolderWanted, announceOffer } from './key-request-events.ts';
import { askPeers, findDevice, type Peers } from './peers.ts';
import { insertKeyRequest, insertOffers, readHolders, saveKeyRequest } from './store/key-requests.ts';

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

/**
 * Looks at a claimed request and takes its next step: offers it, lets it wait, or ends it. A decision is void when the request changed
 * meanwhile; whoever changed it has seen to its next look.
 */
export function dispatchKeyRequest(dispatcher: Dispatcher, request: KeyRequest): Promise<void> {
  return withSpan(
    'dispatch key request',
    {
      kind: SpanKind.INTERNAL,
      attributes: { [attr.keyRequestId]: request.keyRequestId, [attr.attempt]: request.attempt },
      ...traceOf(request),
    },
    () => dispatch(dispatcher, request),
  );
}

/** Up to this age a request is dispatched in the trace that it was made in; later in one of its own, with a link. */
const sameTraceMs = 15 * 60 * 1000;

/** What lets a request go on is often of another trace (a holder attaches, another declines): that one is linked. */
function traceOf({ traceparent, requestedAt }: KeyRequest): Pick<SpanSettings, 'parent' | 'links'> {
  const own = linkFromTraceparent(traceparent);
  const active = trace.getActiveSpan()?.spanContext();
  if (!own || active?.traceId === own.context.traceId) return {};
  if (Date.now() - requestedAt.getTime() > sameTraceMs) return { links: [own] };
  return { parent: contextFromTraceparent(traceparent), ...(active && { links: [{ context: active }] }) };
}

async function dispatch({ db, peers, policy, log, isHeard }: Dispatcher, request: KeyRequest): Promise<void> {
  const rows = await readHolders(db, request);
  if (!rows) throw new Error('a key request has lost its session');
  if (rows.now >= request.expiresAt) return endRequest(db, request, { kind: 'expired' }, rows.now);
  if (rows.requesterRevoked)
    return endRequest(db, request, { kind: 'unfulfillable', because: 'requester_revoked' }, rows.now);

  // An offer that no holder hears of would use up an attempt: what was offered before still waits in the outbox.
  if (!isHeard()) return postpone(db, request, rows.now);

  const ranked = rankedHolders(rows, request.requester, request.keyRequestId);
  const answers = await askPeers(peers, { ...request, ranked }, log);
  const { entitlement, deviceLists, online } = answers;
  if (!entitlement.known || !deviceLists.known || !online.known) return postpone(db, request, rows.now);
  const requesterEntitled = entitlement.value.entitlements.some(
    ({ userId, entitled }) => entitled && userId === request.requester.userId,
  );
  if (!requesterEntitled)
    return endRequest(db, request, { kind: 'unfulfillable', because: 'requester_not_entitled' }, rows.now);
  const device = findDevice(deviceLists.value, request.requester);
  if (device?.revokedAt !== undefined)
    return endRequest(db, request, { kind: 'unfulfillable', because: 'requester_revoked' }, rows.now);

  const views = holderViews(ranked, {
    entitlement: entitlement.value,
    deviceLists: deviceLists.value,
    online: online.value,
    rejected: rows.rejected,
    offers: rows.offers,
  });
  const taken = await db.transaction((tx) => takeStep(tx, request, views, policy, rows.now));
  if (taken)
    log.info(
      { keyRequestId: request.keyRequestId, state: taken.state, attempt: taken.attempt, holders: taken.holders },
      'key request dispatched',
    );
}

async function postpone(db: Database, request: KeyRequest, now: Date): Promise<void> {
  const until = new Date(now.getTime() + postponedMs);
  await db.transaction((tx) =>
    saveKeyRequest(tx, advance(request, { kind: 'postponed', until }, now), request.version),
  );
}

/** Decides and writes the next step. The request as it is then; undefined when somebody else changed it meanwhile. */
async function takeStep(
  tx: Transaction,
  request: KeyRequest,
  views: readonly HolderView[],
  policy: OfferPolicy,
  now: Date,
): Promise<KeyRequest | undefined> {
  const step = nextStep(request, views, policy, now);
  const next = advance(request, step.event, now);
  if (!(await saveKeyRequest(tx, next, request.version))) return undefined;
  if (step.kind === 'offer') await insertOffers(tx, next, step.to, { offeredAt: now, lapsesAt: step.lapsesAt });
  await announceStep(tx, next, step, views);
  return next;
}

/**
 * Stores a new request, its first step taken already when the views of its holders are known, else due for the dispatcher at once.
 * Undefined when the device has an open request for the session.
 */
export async function openKeyRequest(
  tx: Transaction,
  request: KeyRequest,
  views: readonly HolderView[] | undefined,
  { policy, writerBuild }: { readonly policy: OfferPolicy; readonly writerBuild: string },
): Promise<KeyRequest | undefined> {
  const now = request.requestedAt;
  const step = views && nextStep(request, views, policy, now);
  const offers = step?.kind === 'offer' ? step : { to: [], lapsesAt: undefined };
  const opened = await insertKeyRequest(tx, step ? advance(request, step.event, now) : request, offers, writerBuild);
  if (opened && step && views) await announceStep(tx, opened, step, views);
  else if (opened) await announceDue(tx, opened);
  return opened;
}

async function announceStep(
  tx: Transaction,
  request: KeyRequest,
  step: NextStep,
  views: readonly HolderView[],
): Promise<void> {
  if (step.kind === 'offer') await announceOffer(tx, request, step.to);
  if (step.kind === 'wait' && step.announce) await announceHolderWanted(tx, request, willing(views));
  if (step.kind === 'end') await announceEnd(tx, request);
}

function willing(views: readonly HolderView[]): DeviceId[] {
  return views.filter(({ declined }) => !declined).map(({ device }) => device);
}

async function endRequest(
  db: Database,
  request: KeyRequest,
  event: Parameters<typeof advance>[1],
  now: Date,
): Promise<void> {
  const ended = advance(request, event, now);
  if (isOpen(ended.state)) return;
  await db.transaction(async (tx) => {
    if (await saveKeyRequest(tx, ended, request.version)) await announceEnd(tx, ended);
  });
}
