import { MissCause } from '@keytrail/contracts';
import { type DeviceId, deviceKey } from './device.ts';
import { mayRequestKey } from './explain-miss.ts';
import type { KeyFinding } from './findings.ts';
import type { GatewayRecord, KeyFacts, OfferFacts, PresenceRecord, RequestFacts } from './key-facts.ts';
import { isOpen } from './key-request.ts';

/** What became of the ways by which the key could come: the request, its offers, those who have the key, and whether they can be found. */
export function recoveryFindings(facts: KeyFacts): KeyFinding[] {
  const request = facts.requests.findLast(({ state }) => isOpen(state)) ?? facts.requests.at(-1);
  const isWanted = wantsKey(facts);
  const found = [presenceLost(facts, isWanted ? request : undefined), ...(isWanted ? rejected(facts) : [])];
  if (isWanted) {
    found.push(noHolder(facts));
    if (request === undefined) found.push(neverRequested(facts));
    else if (isOpen(request.state)) found.push(declines(request), ...openRequest(facts, request));
    else found.push(declines(request), endedRequest(request));
  }
  return found.filter((finding) => finding !== undefined);
}

/** A key that may be requested, and is not there or cannot be opened. */
function wantsKey({ miss, readable, envelopes }: KeyFacts): boolean {
  if (readable) return envelopes.at(-1)?.rejectedAt !== undefined;
  if (miss === undefined || miss.kind === 'incomplete') return true;
  return mayRequestKey(miss.cause);
}

function rejected({ envelopes, readable }: KeyFacts): KeyFinding[] {
  const last = envelopes.at(-1);
  if (last?.rejectedAt === undefined) return [];
  return [
    {
      code: 'KEY_REJECTED',
      summary: `The device got an envelope that it could not use: ${last.rejectedBecause ?? 'it said no reason'}.`,
      evidence: {
        attempt: String(last.attempt),
        sealed_by: nameOf(last.sealer),
        rejected_at: last.rejectedAt.toISOString(),
        rejected_because: last.rejectedBecause ?? 'unknown',
        rejected_in_all: String(envelopes.filter(({ rejectedAt }) => rejectedAt !== undefined).length),
      },
      remedy:
        'Another holder is asked by itself. When envelopes of one sealer are rejected again and again, look at that device; when those of all are, at the reader: its keys may be lost.',
      explainsMiss: readable,
    },
  ];
}

/** Some leases, for devices of a dead gateway to attach elsewhere. Who is not found later is not there. */
const healedWithinMs = 60_000;

/** `request`: the one that would be answered if presence was right. */
function presenceLost({ presence, holders, now }: KeyFacts, request: RequestFacts | undefined): KeyFinding | undefined {
  if (!presence.known) return undefined;
  const { storeReachable, gateways, attached } = presence.value;
  const signs = signsOfLoss(presence.value, request, now);
  if (signs.length === 0) return undefined;
  const waits = request?.state === 'WAITING_FOR_HOLDER' && request.queuedAt === undefined;
  const online = holders.known ? holders.value.online : 0;
  return {
    code: 'PRESENCE_LOST',
    summary: `Presence does not know who is attached: ${signs.join('; ')}.`,
    evidence: {
      store_reachable: String(storeReachable),
      gateways: String(gateways.length),
      gateways_alive: String(gateways.filter(({ alive }) => alive).length),
      streams: String(sum(gateways, ({ streams }) => streams)),
      streams_without_entry: String(sum(gateways, ({ streamsWithoutEntry }) => streamsWithoutEntry)),
      ...(attached && { holders_with_an_entry: String(attached.length) }),
      ...(holders.known && { holders: String(holders.value.eligible), holders_online: String(online) }),
    },
    remedy:
      'Wait for one lease (10 s): gateways write their entries anew, and devices of one that died attach elsewhere; then the request goes on by itself. What stays of a gateway that died is swept within three minutes: a device of it that has not come back is offline. When it stays longer, keytrail online and keytrail doctor --only PRESENCE,LEASES,REDIS,GHOSTS.',
    explainsMiss: waits && online === 0,
  };
}

function signsOfLoss(
  { storeReachable, gateways, attached }: PresenceRecord,
  request: RequestFacts | undefined,
  now: Date,
): string[] {
  if (!storeReachable) return ['its store cannot be reached'];
  const signs: string[] = [];
  const without = sum(gateways, ({ streamsWithoutEntry }) => streamsWithoutEntry);
  if (without > 0) signs.push(`${without} attached device${without === 1 ? ' has' : 's have'} no entry in the store`);
  if (gateways.some(({ isOwn, alive }) => isOwn && !alive)) signs.push('the gateway that answered has no lease');
  const dead = new Set(gateways.filter(({ alive }) => !alive).map(({ gatewayId }) => gatewayId));
  const orphans = (attached ?? []).filter(({ gatewayId, online }) => !online && dead.has(gatewayId));
  if (orphans.length > 0)
    signs.push(
      `${orphans.length} device${orphans.length === 1 ? '' : 's'} that could help were attached to a gateway that died`,
    );
  const lost = gateways.find(
    ({ lastLossAt }) =>
      lastLossAt !== undefined &&
      request !== undefined &&
      lastLossAt >= request.requestedAt &&
      now.getTime() - lastLossAt.getTime() < healedWithinMs,
  );
  if (signs.length === 0 && lost?.lastLossAt)
    signs.push(`the store had lost its entries at ${lost.lastLossAt.toISOString()}`);
  return signs;
}

function noHolder({ holders, miss }: KeyFacts): KeyFinding | undefined {
  // Nobody can have a key of a session that is not there.
  if (miss?.kind === 'miss' && miss.cause === MissCause.SESSION_UNKNOWN) return undefined;
  if (!holders.known || holders.value.eligible > 0) return undefined;
  return {
    code: 'NO_HOLDER_EXISTS',
    summary: 'No device is left that has the key and may give it.',
    evidence: { holders: '0' },
    remedy: 'Rotate the conversation: messages to come get a key. The old ones stay closed to this device.',
    explainsMiss: false,
  };
}

function neverRequested({ holders }: KeyFacts): KeyFinding | undefined {
  if (holders.known && holders.value.eligible === 0) return undefined;
  return {
    code: 'NEVER_REQUESTED',
    summary: 'The device never asked for the key.',
    evidence: { requests: '0', ...(holders.known && { holders: String(holders.value.eligible) }) },
    remedy:
      'Have the client request it (the SDK does, with recoverHistory): is the device attached, and does it run a build that does?',
    explainsMiss: false,
  };
}

function openRequest(facts: KeyFacts, request: RequestFacts): (KeyFinding | undefined)[] {
  const about = aboutRequest(request, facts.now);
  const standing = request.offers.filter(
    ({ lapsesAt, declinedAt }) => lapsesAt > facts.now && declinedAt === undefined,
  );
  const found = [silence(request, facts.now)];
  if (request.state === 'OFFERED' && standing.length > 0)
    found.push({
      code: 'REQUEST_OFFERED',
      summary: `The key was asked for, and ${standing.length} device${standing.length === 1 ? ' has' : 's have'} been offered to answer.`,
      evidence: { ...about, offered_to: standing.map(({ holder }) => nameOf(holder)).join(', ') },
      remedy: 'Wait: the next holder is asked when these stay silent.',
      explainsMiss: false,
    });
  else if (request.queuedAt !== undefined)
    found.push({
      code: 'REQUEST_WAITING',
      summary: 'The request waits for its turn: its holders have enough to do for this device.',
      evidence: { ...about, queued_at: request.queuedAt.toISOString() },
      remedy: 'Wait: it is offered as soon as an earlier one is answered.',
      explainsMiss: false,
    });
  else if (facts.holders.known && facts.holders.value.eligible > 0)
    found.push(
      facts.holders.value.online === 0
        ? {
            code: 'NO_HOLDER_ONLINE',
            summary: `The request waits: of ${facts.holders.value.eligible} device${facts.holders.value.eligible === 1 ? '' : 's'} that could help none is online.`,
            evidence: { ...about, holders: String(facts.holders.value.eligible), holders_online: '0' },
            remedy:
              'Wake one of them: is the event holder_wanted turned into pushes? It is offered as soon as one attaches.',
            explainsMiss: false,
          }
        : {
            code: 'REQUEST_WAITING',
            summary: 'The request waits to be offered, and a device that could help is online.',
            evidence: { ...about, holders_online: String(facts.holders.value.online) },
            remedy: `Have it looked at now: keytrail requests nudge ${request.keyRequestId}. When that is needed often: keytrail doctor --only OUTBOX,CONSUMERS.`,
            explainsMiss: false,
          },
    );
  return found;
}

function silence(request: RequestFacts, now: Date): KeyFinding | undefined {
  const silent = request.offers.filter(({ lapsesAt, declinedAt }) => lapsesAt <= now && declinedAt === undefined);
  if (silent.length === 0) return undefined;
  return {
    code: 'HOLDERS_SILENT',
    summary: `${silent.length} offer${silent.length === 1 ? '' : 's'} lapsed without an answer.`,
    evidence: { ...aboutRequest(request, now), silent: holdersOf(silent) },
    remedy:
      'Others are asked by themselves. A device that is online and stays silent runs an application that is stuck, or its answers are refused, which looks the same from here: session logs a refused FulfillKeyRequest with its reason and trace, and the SDK of the holder throws it.',
    explainsMiss: false,
  };
}

function declines(request: RequestFacts): KeyFinding | undefined {
  const declined = request.offers.filter(({ declinedAt }) => declinedAt !== undefined);
  if (declined.length === 0) return undefined;
  const reasons = [...new Set(declined.map(({ declinedBecause }) => declinedBecause))];
  return {
    code: 'HOLDERS_DECLINE',
    summary: `${declined.length} offer${declined.length === 1 ? ' was' : 's were'} declined: ${reasons.join(', ')}.`,
    evidence: {
      key_request_id: request.keyRequestId,
      reasons: reasons.join(', '),
      declined_by: holdersOf(declined),
    },
    remedy:
      'UNCERTIFIED, ROOT_KEY_CHANGED, NOT_TRUSTED: its people must approve the device or accept the new root key, then keytrail requests replay. KEY_NOT_HELD: that device lost its keys.',
    explainsMiss: false,
  };
}

function endedRequest(request: RequestFacts): KeyFinding | undefined {
  const ended = {
    key_request_id: request.keyRequestId,
    state: request.state,
    ended_because: request.endedBecause ?? 'unknown',
    ...(request.endedAt && { ended_at: request.endedAt.toISOString() }),
    offers: String(request.offers.length),
  };
  if (request.state === 'FULFILLED') return undefined;
  if (request.state === 'EXPIRED')
    return {
      code: 'REQUEST_EXPIRED',
      summary: 'The key was asked for, and nobody helped within the time of the request.',
      evidence: ended,
      remedy: `Open it anew: keytrail requests replay ${request.keyRequestId}. Nobody came online in that time: are holders woken by pushes (holder_wanted)?`,
      explainsMiss: false,
    };
  return {
    code: 'REQUEST_GIVEN_UP',
    summary: `The key was asked for, and the request was given up: ${request.endedBecause ?? 'unknown'}.`,
    evidence: ended,
    remedy: `Once what stood in its way is gone, open it anew: keytrail requests replay ${request.keyRequestId}.`,
    explainsMiss: false,
  };
}

function aboutRequest(request: RequestFacts, now: Date): Record<string, string> {
  return {
    key_request_id: request.keyRequestId,
    state: request.state,
    waiting_for_s: String(Math.max(0, Math.round((now.getTime() - request.requestedAt.getTime()) / 1000))),
    requested_in_trace: request.traceId || 'unknown',
  };
}

const holdersOf = (offers: readonly OfferFacts[]) =>
  [...new Map(offers.map(({ holder }) => [deviceKey(holder), nameOf(holder)])).values()].slice(0, 10).join(', ');
const nameOf = ({ userId, deviceId }: DeviceId) => `${userId}/${deviceId}`;
const sum = (gateways: readonly GatewayRecord[], of: (gateway: GatewayRecord) => number) =>
  gateways.reduce((total, gateway) => total + of(gateway), 0);
