import { randomUUID } from 'node:crypto';
import type { ConnectError } from '@connectrpc/connect';
import { KeyRequestPriority as PriorityOnWire, Recovery, Remedy } from '@keytrail/contracts';
import { type Call, refuse } from '@keytrail/rpc';
import type { Transaction } from '@keytrail/storage';
import { attr, currentTraceparent, linkFromTraceparent, trace } from '@keytrail/telemetry';
import { type Opening, openKeyRequests } from './dispatch-key-request.ts';
import type { DeviceId } from './domain/device.ts';
import { mayRequestKey } from './domain/explain-miss.ts';
import {
  type HolderView,
  isOpen,
  type KeyRequest,
  type KeyRequestKind,
  type KeyRequestPriority,
  newKeyRequest,
} from './domain/key-request.ts';
import { holderViews } from './holder-views.ts';
import { announceDue } from './key-request-events.ts';
import { explain, type GatheredFacts, refuseExplained } from './miss.ts';
import type { Parts } from './parts.ts';
import { peerUnavailable } from './refusals.ts';
import { readHits } from './store/initial-session.ts';
import { type RaisedRequest, raiseKeyRequests, readOpenKeyRequests } from './store/key-requests.ts';
import { lockRequesters, readRequesterLoad } from './store/requesters.ts';

/** A session whose key a device asks for. */
export interface WantedKey {
  readonly conversationId: string;
  readonly sessionId: string;
  readonly kind: KeyRequestKind;
  readonly priority: KeyRequestPriority;
}

/** With what is known about it, and the sealers of envelopes that are rejected by this very call. */
export interface WeighedKey {
  readonly wanted: WantedKey;
  readonly facts: GatheredFacts;
  readonly rejected?: readonly DeviceId[];
}

export function priorityOf(priority: PriorityOnWire): KeyRequestPriority {
  return priority === PriorityOnWire.FOREGROUND ? 'FOREGROUND' : 'BACKGROUND';
}

/**
 * Why the device may not request the key, if so. A miss counts as one when its refusal is made, and then only. `whole` is a refusal that has
 * nothing to do with the key: a peer could not be asked.
 */
export function refusalOf(
  parts: Parts,
  wanted: WantedKey,
  device: DeviceId,
  facts: GatheredFacts,
  call: Call,
): { readonly whole: boolean; readonly refusal: () => ConnectError } | undefined {
  const { entitlement, deviceLists } = facts.answers;
  if (!entitlement.known) return { whole: true, refusal: () => peerUnavailable(entitlement.peer) };
  const miss = explain(parts, wanted, device, facts);
  if (miss.kind === 'miss' && !mayRequestKey(miss.cause))
    return { whole: false, refusal: () => refuseExplained(wanted, miss, facts, parts.config, call) };
  // Whether it may be requested is clear without presence: the dispatcher asks again.
  return deviceLists.known ? undefined : { whole: true, refusal: () => peerUnavailable(deviceLists.peer) };
}

/**
 * Opens requests for the keys, or finds the open ones and raises them. Each with a result of its own, in the order of the keys. Peers have been
 * asked anyway, so the first offers are made in the same transaction: with a holder online, the key is on its way before the answer is.
 */
export async function openOrFind(
  parts: Parts,
  tx: Transaction,
  device: DeviceId,
  keys: readonly WeighedKey[],
): Promise<readonly (KeyRequest | ConnectError)[]> {
  lockRequesters(tx, [device]);
  const wanted = keys.map((key) => key.wanted);
  const missing = keys.filter(
    ({ wanted: { kind }, facts }) => kind === 'MISSING' && facts.local.newestAttempt !== undefined,
  );
  const [load, open, hits] = await Promise.all([
    readRequesterLoad(tx, device),
    readOpenKeyRequests(tx, wanted, device),
    missing.length === 0
      ? new Set<string>()
      : readHits(
          tx,
          missing.map((key) => key.wanted),
          device,
        ),
  ]);
  const openBySession = new Map(open.map((request) => [sessionKey(request), request]));
  const results = new Map<string, KeyRequest | ConnectError>();
  const openings: Opening[] = [];
  const raised: RaisedRequest[] = [];
  let room = parts.config.openRequestsMax - load.open;
  // What the device's user looks at is not refused for what nobody does.
  for (const key of keys.toSorted((a, b) => rank(a) - rank(b))) {
    const { kind, priority } = key.wanted;
    const known = openBySession.get(sessionKey(key.wanted));
    if (kind === 'MISSING' && hits.has(sessionKey(key.wanted))) results.set(sessionKey(key.wanted), notNeeded(kind));
    else if (known) {
      results.set(sessionKey(key.wanted), known);
      if (results.size <= linksAtMost) linkTo(known);
      const kindNow = kind === 'REJECTED' ? kind : known.kind;
      const disputed = (key.rejected ?? []).length > 0;
      if (disputed || kindNow !== known.kind || (priority === 'FOREGROUND' && known.priority !== 'FOREGROUND'))
        raised.push({ keyRequestId: known.keyRequestId, priority, kind: kindNow, disputed });
    } else if (room <= 0) results.set(sessionKey(key.wanted), tooManyOpen(parts.config.openRequestsMax));
    else {
      room--;
      openings.push(openingOf(parts, key, device));
    }
  }
  const [first] = openings;
  if (first) {
    const { policy, writerBuild } = { policy: parts.config, writerBuild: parts.writerBuild };
    const { standing } = load;
    const now = first.request.requestedAt;
    const opened = await openKeyRequests(tx, device, openings, { policy, writerBuild, standing, now });
    for (const request of opened) results.set(sessionKey(request), request);
  }
  for (const request of raised.length > 0 ? await raiseKeyRequests(tx, raised) : [])
    results.set(sessionKey(request), request);
  const due = [...results.values()].find((result) => isRequest(result) && isRaised(raised, result)) as
    | KeyRequest
    | undefined;
  if (due) await announceDue(tx, due);

  const left = keys.filter(({ wanted: of }) => !results.has(sessionKey(of)));
  // Their open requests were opened without the lock, by an older build, or ended between the two statements: this caller opens the next ones.
  const rest = left.length > 0 ? await openOrFind(parts, tx, device, left) : [];
  for (const [place, key] of left.entries()) results.set(sessionKey(key.wanted), rest[place] as KeyRequest);
  return wanted.map((of) => results.get(sessionKey(of)) as KeyRequest | ConnectError);
}

/** Spans stay small, however many keys are asked for. */
const linksAtMost = 16;

/** What becomes of the request goes on in the trace that it was opened in. */
function linkTo({ traceparent }: KeyRequest): void {
  const link = linkFromTraceparent(traceparent);
  if (link) trace.getActiveSpan()?.addLink(link);
}

export function isRequest(result: KeyRequest | ConnectError): result is KeyRequest {
  return !(result instanceof Error);
}

function isRaised(raised: readonly RaisedRequest[], { keyRequestId, state }: KeyRequest): boolean {
  return raised.some((each) => each.keyRequestId === keyRequestId && (state === 'WAITING_FOR_HOLDER' || each.disputed));
}

function rank({ wanted }: WeighedKey): number {
  return wanted.priority === 'FOREGROUND' ? 0 : 1;
}

/** A key for maps. The same UUID may be written in two ways. */
export function sessionKey({ conversationId, sessionId }: { conversationId: string; sessionId: string }): string {
  return `${conversationId.toLowerCase()} ${sessionId}`;
}

function openingOf(parts: Parts, { wanted, facts, rejected = [] }: WeighedKey, device: DeviceId): Opening {
  const { now, session } = facts.local;
  if (!session) throw new Error('only a stored session can be requested');
  const request = newKeyRequest({
    keyRequestId: randomUUID(),
    ...wanted,
    epoch: session.epoch,
    requester: device,
    requestedAt: now,
    expiresAt: new Date(now.getTime() + parts.config.expiryMs),
    traceparent: currentTraceparent(),
  });
  const all = [...facts.local.rejected, ...rejected];
  return { request, views: viewsOf(facts, all), rejections: all.length };
}

/** Undefined when presence could not be asked. */
function viewsOf({ ranked, answers }: GatheredFacts, rejected: readonly DeviceId[]): HolderView[] | undefined {
  const { entitlement, deviceLists, online } = answers;
  if (!entitlement.known || !deviceLists.known || !online.known) return undefined;
  return holderViews(ranked, {
    entitlement: entitlement.value,
    deviceLists: deviceLists.value,
    online: online.value,
    rejected,
    offers: [],
  });
}

function notNeeded(kind: KeyRequestKind): ConnectError {
  return refuse('KEY_REQUEST_NOT_NEEDED', 'there is an envelope for this device: read it', { metadata: { kind } });
}

/** Open requests end by themselves, most of them within moments of a holder's coming. */
const openAgainAfterMs = 5_000;

function tooManyOpen(limit: number): ConnectError {
  return refuse('LIMIT_EXCEEDED', `more than ${limit} open key requests of one device`, {
    metadata: { limit: String(limit), scope: 'open key requests of a device' },
    retryAfterMs: openAgainAfterMs,
  });
}

/** The state of recovery and what is to be done, as a miss would tell it. */
export function outlookOf({ state }: KeyRequest): { readonly recovery: Recovery; readonly remedy: Remedy } {
  if (state === 'OFFERED') return { recovery: Recovery.PENDING_OFFERED, remedy: Remedy.WAIT };
  if (isOpen(state)) return { recovery: Recovery.PENDING_NO_HOLDER_ONLINE, remedy: Remedy.WAIT };
  return { recovery: Recovery.NO_HOLDER_EXISTS, remedy: Remedy.REQUEST_ROTATION };
}

export function tellRequested(request: KeyRequest, call: Call): void {
  const { keyRequestId, state, attempt, holders, conversationId, sessionId } = request;
  trace.getActiveSpan()?.setAttributes({
    [attr.keyRequestId]: keyRequestId,
    [attr.keyRequestState]: state,
    [attr.holdersKnown]: holders,
  });
  call.log.info({ keyRequestId, conversationId, sessionId, state, attempt, holders }, 'key requested');
}
