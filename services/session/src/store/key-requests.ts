import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { DeviceId } from '../domain/device.ts';
import { deviceOfKey } from '../domain/device.ts';
import type {
  EndedBecause,
  KeyRequest,
  KeyRequestKind,
  KeyRequestPriority,
  KeyRequestState,
} from '../domain/key-request.ts';

/** A row of key_requests. */
export interface Row {
  key_request_id: string;
  conversation_id: string;
  session_id: string;
  epoch: bigint;
  user_id: string;
  device_id: string;
  kind: KeyRequestKind;
  priority: KeyRequestPriority;
  state: KeyRequestState;
  attempt_base: number;
  attempt: number;
  accepted_attempt: number | null;
  holders: number;
  requested_at: Date;
  next_attempt_at: Date;
  expires_at: Date;
  holder_wanted_at: Date | null;
  queued_at: Date | null;
  ended_at: Date | null;
  ended_because: EndedBecause | null;
  version: number;
  traceparent: string;
}

export const columns = `key_request_id, conversation_id, session_id, epoch, user_id, device_id, kind, priority, state, attempt_base, attempt,
  accepted_attempt, holders, requested_at, next_attempt_at, expires_at, holder_wanted_at, queued_at, ended_at, ended_because, version,
  traceparent`;

export function keyRequestOf(row: Row): KeyRequest {
  return {
    keyRequestId: row.key_request_id,
    conversationId: row.conversation_id,
    sessionId: row.session_id,
    epoch: row.epoch,
    requester: { userId: row.user_id, deviceId: row.device_id },
    kind: row.kind,
    priority: row.priority,
    state: row.state,
    attemptBase: row.attempt_base,
    attempt: row.attempt,
    acceptedAttempt: row.accepted_attempt ?? undefined,
    holders: row.holders,
    requestedAt: row.requested_at,
    nextAttemptAt: row.next_attempt_at,
    expiresAt: row.expires_at,
    holderWantedAt: row.holder_wanted_at ?? undefined,
    queuedAt: row.queued_at ?? undefined,
    endedAt: row.ended_at ?? undefined,
    endedBecause: row.ended_because ?? undefined,
    version: row.version,
    traceparent: row.traceparent,
  };
}

const open = `state IN ('WAITING_FOR_HOLDER', 'OFFERED')`;

const insertRequests = statement(
  'insert_key_requests',
  `WITH asked AS (
     SELECT * FROM unnest($5::uuid[], $6::uuid[], $7::text[], $8::bigint[], $9::text[], $10::text[], $11::text[], $12::integer[],
       $13::integer[], $14::timestamptz[], $15::timestamptz[], $16::timestamptz[], $17::timestamptz[], $18::text[], $19::integer[],
       $20::timestamptz[], $21::timestamptz[], $22::text[]) AS a
       (key_request_id, conversation_id, session_id, epoch, kind, priority, state, attempts, holders, next_attempt_at, holder_wanted_at,
        queued_at, ended_at, ended_because, version, requested_at, expires_at, traceparent)),
   opened AS (
     INSERT INTO key_requests (key_request_id, conversation_id, session_id, epoch, user_id, device_id, kind, priority, state, attempt_base,
       attempt, holders, requested_at, next_attempt_at, expires_at, holder_wanted_at, queued_at, ended_at, ended_because, version,
       traceparent, writer_build)
     SELECT a.key_request_id, a.conversation_id, a.session_id, a.epoch, $1, $2, a.kind, a.priority, a.state, base.attempt,
       base.attempt + a.attempts, a.holders, a.requested_at, a.next_attempt_at, a.expires_at, a.holder_wanted_at, a.queued_at, a.ended_at,
       a.ended_because, a.version, a.traceparent, $3
     FROM asked a CROSS JOIN LATERAL (SELECT greatest(
       (SELECT coalesce(max(e.attempt), 0) FROM envelopes e
         WHERE e.conversation_id = a.conversation_id AND e.session_id = a.session_id AND e.user_id = $1 AND e.device_id = $2),
       (SELECT coalesce(max(k.attempt), 0) FROM key_requests k
         WHERE k.conversation_id = a.conversation_id AND k.session_id = a.session_id AND k.user_id = $1 AND k.device_id = $2)
       ) AS attempt) base
     ORDER BY a.conversation_id, a.session_id
     ON CONFLICT (conversation_id, session_id, user_id, device_id) WHERE ${open} DO NOTHING
     RETURNING ${columns}),
   offered AS (
     INSERT INTO offers (key_request_id, attempt, user_id, device_id, offered_at, lapses_at, turn)
     SELECT opened.key_request_id, opened.attempt, o.user_id, o.device_id, $4, o.lapses_at, o.turn
     FROM opened JOIN unnest($23::uuid[], $24::text[], $25::text[], $26::timestamptz[], $27::integer[])
       AS o (key_request_id, user_id, device_id, lapses_at, turn) USING (key_request_id))
   SELECT ${columns} FROM opened`,
);

/** An offer as it is stored with the request that it is of. */
export interface NewOffer {
  readonly keyRequestId: string;
  readonly to: DeviceId;
  readonly lapsesAt: Date;
  readonly turn: number;
}

/**
 * Stores new requests of one device as their first steps left them, with the offers of those steps; not those for whose session the device
 * has an open one. Waits for a concurrent opener. Requests count their attempts from 0; stored, they count on from the device's earlier ones.
 */
export async function insertKeyRequests(
  tx: Transaction,
  { userId, deviceId }: DeviceId,
  requests: readonly KeyRequest[],
  offers: readonly NewOffer[],
  { offeredAt, writerBuild }: { readonly offeredAt: Date; readonly writerBuild: string },
): Promise<KeyRequest[]> {
  const rows = await tx.query<Row>(insertRequests, [
    userId,
    deviceId,
    writerBuild,
    offeredAt,
    requests.map((request) => request.keyRequestId),
    requests.map((request) => request.conversationId),
    requests.map((request) => request.sessionId),
    requests.map((request) => request.epoch),
    requests.map((request) => request.kind),
    requests.map((request) => request.priority),
    requests.map((request) => request.state),
    requests.map((request) => request.attempt),
    requests.map((request) => request.holders),
    requests.map((request) => request.nextAttemptAt),
    requests.map((request) => request.holderWantedAt ?? null),
    requests.map((request) => request.queuedAt ?? null),
    requests.map((request) => request.endedAt ?? null),
    requests.map((request) => request.endedBecause ?? null),
    requests.map((request) => request.version),
    requests.map((request) => request.requestedAt),
    requests.map((request) => request.expiresAt),
    requests.map((request) => request.traceparent),
    ...offerColumns(offers),
  ]);
  return rows.map(keyRequestOf);
}

function offerColumns(offers: readonly NewOffer[]): unknown[][] {
  return [
    offers.map(({ keyRequestId }) => keyRequestId),
    offers.map(({ to }) => to.userId),
    offers.map(({ to }) => to.deviceId),
    offers.map(({ lapsesAt }) => lapsesAt),
    offers.map(({ turn }) => turn),
  ];
}

const readOpen = statement(
  'read_open_key_requests',
  `SELECT ${columns} FROM key_requests
   WHERE (conversation_id, session_id) IN (SELECT * FROM unnest($1::uuid[], $2::text[])) AND user_id = $3 AND device_id = $4 AND ${open}`,
);

export interface SessionName {
  readonly conversationId: string;
  readonly sessionId: string;
}

/** The open requests of a device for the sessions named. */
export async function readOpenKeyRequests(
  db: Queryable,
  sessions: readonly SessionName[],
  { userId, deviceId }: DeviceId,
): Promise<KeyRequest[]> {
  const rows = await db.query<Row>(readOpen, [
    sessions.map(({ conversationId }) => conversationId),
    sessions.map(({ sessionId }) => sessionId),
    userId,
    deviceId,
  ]);
  return rows.map(keyRequestOf);
}

export async function readOpenKeyRequest(
  db: Queryable,
  conversationId: string,
  sessionId: string,
  device: DeviceId,
): Promise<KeyRequest | undefined> {
  return (await readOpenKeyRequests(db, [{ conversationId, sessionId }], device))[0];
}

const raise = statement(
  'raise_key_requests',
  `WITH asked AS (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::boolean[]) AS a (key_request_id, priority, kind, disputed)),
   locked AS (SELECT k.key_request_id FROM key_requests k JOIN asked USING (key_request_id)
     WHERE ${open} ORDER BY k.key_request_id FOR UPDATE OF k),
   first AS (UPDATE offers o SET turn = 1 FROM asked a, locked l
     WHERE o.key_request_id = a.key_request_id AND o.key_request_id = l.key_request_id AND a.priority = 'FOREGROUND'
       AND o.lapses_at > now() AND o.declined_at IS NULL)
   UPDATE key_requests k SET priority = greatest(k.priority, a.priority), kind = a.kind, version = version + 1,
     next_attempt_at = CASE WHEN k.state = 'WAITING_FOR_HOLDER' OR a.disputed THEN now() ELSE k.next_attempt_at END
   FROM asked a JOIN locked USING (key_request_id) WHERE k.key_request_id = a.key_request_id
   RETURNING ${columns
     .split(',')
     .map((column) => `k.${column.trim()}`)
     .join(', ')}`,
);

export interface RaisedRequest {
  readonly keyRequestId: string;
  readonly priority: KeyRequestPriority;
  readonly kind: KeyRequestKind;
  /** An envelope was rejected just now: whom it is offered to may be its sealer, so that the next holder is asked at once. */
  readonly disputed: boolean;
}

/**
 * Raises the priority of open requests, never lowers it, and sets their kind; one that waits is due then, and one that is disputed. As they
 * are afterwards, unless they ended.
 */
export async function raiseKeyRequests(tx: Transaction, raised: readonly RaisedRequest[]): Promise<KeyRequest[]> {
  const rows = await tx.query<Row>(raise, [
    raised.map(({ keyRequestId }) => keyRequestId),
    raised.map(({ priority }) => priority),
    raised.map(({ kind }) => kind),
    raised.map(({ disputed }) => disputed),
  ]);
  return rows.map(keyRequestOf);
}

const lockRows = statement(
  'lock_key_requests',
  `SELECT ${columns} FROM key_requests WHERE key_request_id = ANY ($1::uuid[]) ORDER BY key_request_id FOR UPDATE`,
);

/** The requests, locked until the transaction ends, in the order of their keys: one change at a time. */
export async function lockKeyRequests(
  tx: Transaction,
  keyRequestIds: readonly string[],
): Promise<ReadonlyMap<string, KeyRequest>> {
  const rows = await tx.query<Row>(lockRows, [keyRequestIds]);
  return new Map(rows.map((row) => [row.key_request_id, keyRequestOf(row)]));
}

export async function lockKeyRequest(tx: Transaction, keyRequestId: string): Promise<KeyRequest | undefined> {
  return (await lockKeyRequests(tx, [keyRequestId])).get(keyRequestId);
}

// Locked in the order of their keys, as everywhere.
const updateRequests = statement(
  'update_key_requests',
  `WITH saved AS (
     SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::timestamptz[],
       $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::text[], $12::integer[]) AS s
       (key_request_id, was, state, attempt, accepted_attempt, holders, next_attempt_at, holder_wanted_at, queued_at, ended_at,
        ended_because, version)),
   locked AS (
     SELECT k.key_request_id FROM key_requests k JOIN saved s ON s.key_request_id = k.key_request_id AND s.was = k.version
     ORDER BY k.key_request_id FOR UPDATE OF k)
   UPDATE key_requests k SET state = s.state, attempt = s.attempt, accepted_attempt = s.accepted_attempt, holders = s.holders,
     next_attempt_at = s.next_attempt_at, holder_wanted_at = s.holder_wanted_at, queued_at = s.queued_at, ended_at = s.ended_at,
     ended_because = s.ended_because, version = s.version
   FROM saved s JOIN locked USING (key_request_id) WHERE k.key_request_id = s.key_request_id
   RETURNING k.key_request_id`,
);

/**
 * Saves what became of requests that were read at the versions named. Those saved: of one that somebody else changed meanwhile, nothing is
 * written.
 */
export async function saveKeyRequests(
  tx: Transaction,
  changed: readonly { readonly request: KeyRequest; readonly version: number }[],
): Promise<ReadonlySet<string>> {
  const requests = changed.map(({ request }) => request);
  const saved = await tx.query<{ key_request_id: string }>(updateRequests, [
    requests.map((request) => request.keyRequestId),
    changed.map(({ version }) => version),
    requests.map((request) => request.state),
    requests.map((request) => request.attempt),
    requests.map((request) => request.acceptedAttempt ?? null),
    requests.map((request) => request.holders),
    requests.map((request) => request.nextAttemptAt),
    requests.map((request) => request.holderWantedAt ?? null),
    requests.map((request) => request.queuedAt ?? null),
    requests.map((request) => request.endedAt ?? null),
    requests.map((request) => request.endedBecause ?? null),
    requests.map((request) => request.version),
  ]);
  return new Set(saved.map((row) => row.key_request_id));
}

export async function saveKeyRequest(tx: Transaction, request: KeyRequest, version: number): Promise<boolean> {
  return (await saveKeyRequests(tx, [{ request, version }])).size > 0;
}

// A claim is a lease on the next look: whoever claims a due request has `$2` milliseconds before the sweep takes it up again. It is called up
// from no queue meanwhile: whoever makes room calls up the next one. Requesters
// take turns, each with its first request, then each with its second; who has asked for much waits for no longer than it made others wait.
// The inner limit keeps a backlog from being sorted for each claim: it is ten times what one device may have open. What others claim at the same
// time is skipped, so that more are chosen than are claimed.
const claimDue = statement(
  'claim_due_key_requests',
  `WITH due AS (
     SELECT key_request_id, next_attempt_at,
       row_number() OVER (PARTITION BY user_id, device_id ORDER BY priority DESC, requested_at, key_request_id) AS turn
     FROM (SELECT key_request_id, user_id, device_id, priority, requested_at, next_attempt_at FROM key_requests
       WHERE ${open} AND next_attempt_at <= now() ORDER BY next_attempt_at LIMIT 10000) oldest),
   first AS MATERIALIZED (SELECT key_request_id, turn, next_attempt_at FROM due ORDER BY turn, next_attempt_at LIMIT 5 * $1)
   UPDATE key_requests SET next_attempt_at = now() + $2 * interval '1 millisecond', version = version + 1, queued_at = NULL
   WHERE key_request_id IN (
     SELECT k.key_request_id FROM key_requests k JOIN first USING (key_request_id)
     WHERE k.key_request_id = ANY (ARRAY(SELECT key_request_id FROM first)) AND k.state IN ('WAITING_FOR_HOLDER', 'OFFERED') AND k.next_attempt_at <= now()
     ORDER BY first.turn, first.next_attempt_at LIMIT $1 FOR UPDATE OF k SKIP LOCKED)
   RETURNING ${columns}`,
);

export async function claimDueKeyRequests(db: Queryable, most: number, leaseMs: number): Promise<KeyRequest[]> {
  return (await db.query<Row>(claimDue, [most, leaseMs])).map(keyRequestOf);
}

const claimWith = statement(
  'claim_key_requests_with',
  `UPDATE key_requests SET next_attempt_at = now() + $2 * interval '1 millisecond', version = version + 1, queued_at = NULL
   WHERE key_request_id IN (
     SELECT k.key_request_id FROM key_requests k
     WHERE (k.user_id, k.device_id) IN (SELECT user_id, device_id FROM key_requests WHERE key_request_id = $1)
       AND ${open} AND k.next_attempt_at <= now()
     ORDER BY k.priority DESC, k.requested_at, k.key_request_id LIMIT $3 FOR UPDATE OF k SKIP LOCKED)
   RETURNING ${columns}`,
);

/** Claims what is due of the device whose request is named: that request, if it is, and what else is. */
export async function claimDueWith(
  db: Queryable,
  keyRequestId: string,
  most: number,
  leaseMs: number,
): Promise<KeyRequest[]> {
  return (await db.query<Row>(claimWith, [keyRequestId, leaseMs, most])).map(keyRequestOf);
}

// Not SKIP LOCKED: whoever holds one just now may have asked who is online before this holder was.
const hurryForHolder = statement(
  'hurry_key_requests_for_holder',
  `WITH waiting AS (
     SELECT k.key_request_id FROM key_requests k
     WHERE k.state = 'WAITING_FOR_HOLDER' AND (k.user_id, k.device_id) <> ($1, $2)
       AND EXISTS (SELECT FROM envelopes e WHERE e.conversation_id = k.conversation_id AND e.session_id = k.session_id
         AND e.user_id = $1 AND e.device_id = $2)
     ORDER BY k.key_request_id FOR UPDATE)
   UPDATE key_requests k SET next_attempt_at = now(), version = version + 1 FROM waiting
   WHERE k.key_request_id = waiting.key_request_id RETURNING true AS hurried`,
);

/** Makes requests due that wait and that a device which just attached could fulfil. How many. */
export async function hurryKeyRequestsForHolder(db: Queryable, { userId, deviceId }: DeviceId): Promise<number> {
  return (await db.query(hurryForHolder, [userId, deviceId])).length;
}

export interface HolderRows {
  readonly now: Date;
  /** By the local list: the request is to end, whatever the peers would say. */
  readonly requesterRevoked: boolean;
  readonly initiator: DeviceId;
  readonly holders: readonly DeviceId[];
  readonly offers: readonly {
    readonly device: DeviceId;
    readonly lapsesAt: Date;
    readonly declined: boolean;
  }[];
  /** The sealer of each envelope for the requester that was rejected; a sealer stands once for each. */
  readonly rejected: readonly DeviceId[];
}

const readHolderRows = statement(
  'read_holders',
  `SELECT k.key_request_id, now() AS now, s.initiator_user_id, s.initiator_device_id,
     EXISTS (SELECT FROM revoked_devices r WHERE r.user_id = k.user_id AND r.device_id = k.device_id) AS requester_revoked,
     coalesce((SELECT array_agg(DISTINCT e.user_id || ' ' || e.device_id)
       FROM envelopes e LEFT JOIN revoked_devices r ON r.user_id = e.user_id AND r.device_id = e.device_id
       WHERE e.conversation_id = k.conversation_id AND e.session_id = k.session_id AND r.user_id IS NULL), '{}') AS holders,
     coalesce((SELECT array_agg(e.sealer_user_id || ' ' || e.sealer_device_id) FROM envelopes e
       WHERE e.conversation_id = k.conversation_id AND e.session_id = k.session_id AND e.user_id = k.user_id
         AND e.device_id = k.device_id AND e.rejected_at IS NOT NULL), '{}') AS rejected,
     (SELECT json_agg(json_build_array(o.user_id, o.device_id, extract(epoch FROM o.lapses_at) * 1000, o.declined_at IS NOT NULL))
       FROM offers o WHERE o.key_request_id = k.key_request_id) AS offers
   FROM key_requests k JOIN sessions s ON s.conversation_id = k.conversation_id AND s.session_id = k.session_id
   WHERE k.key_request_id = ANY ($1::uuid[])`,
);

/** Who could help with each of the requests, and what they were asked and answered so far; not of those that are gone. */
export async function readHolders(
  db: Queryable,
  requests: readonly KeyRequest[],
): Promise<ReadonlyMap<string, HolderRows>> {
  const rows = await db.query<{
    key_request_id: string;
    now: Date;
    requester_revoked: boolean;
    initiator_user_id: string;
    initiator_device_id: string;
    holders: string[];
    rejected: string[];
    offers: [string, string, number, boolean][] | null;
  }>(readHolderRows, [requests.map(({ keyRequestId }) => keyRequestId)]);
  return new Map(
    rows.map((row) => [
      row.key_request_id,
      {
        now: row.now,
        requesterRevoked: row.requester_revoked,
        initiator: { userId: row.initiator_user_id, deviceId: row.initiator_device_id },
        holders: row.holders.map(deviceOfKey),
        rejected: row.rejected.map(deviceOfKey),
        offers: (row.offers ?? []).map(([userId, deviceId, lapsesAtMs, declined]) => ({
          device: { userId, deviceId },
          lapsesAt: new Date(Number(lapsesAtMs)),
          declined,
        })),
      },
    ]),
  );
}

const insertOfferRows = statement(
  'insert_offers',
  `INSERT INTO offers (key_request_id, attempt, user_id, device_id, offered_at, lapses_at, turn)
   SELECT o.key_request_id, k.attempt, o.user_id, o.device_id, $1, o.lapses_at, o.turn
   FROM unnest($2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::integer[]) AS o (key_request_id, user_id, device_id, lapses_at, turn)
   JOIN key_requests k USING (key_request_id)`,
);

/** Writes offers of the attempts at which their requests stand. */
export function insertOffers(tx: Transaction, offers: readonly NewOffer[], offeredAt: Date): void {
  if (offers.length > 0) tx.send(insertOfferRows, [offeredAt, ...offerColumns(offers)]);
}

export interface OfferedRequest {
  readonly request: KeyRequest;
  readonly declined: boolean;
  readonly offeredAt: Date;
  readonly headerHash: Uint8Array | undefined;
  readonly now: Date;
}

const readOffers = statement(
  'read_offers',
  `SELECT asked.place::integer, ${columns
    .split(',')
    .map((column) => `k.${column.trim()}`)
    .join(', ')}, o.declined_at IS NOT NULL AS declined, o.offered_at, s.header_hash, now() AS now
   FROM unnest($1::uuid[], $2::integer[]) WITH ORDINALITY AS asked (key_request_id, attempt, place)
   JOIN offers o ON o.key_request_id = asked.key_request_id AND o.attempt = asked.attempt AND o.user_id = $3 AND o.device_id = $4
   JOIN key_requests k ON k.key_request_id = o.key_request_id JOIN sessions s USING (conversation_id, session_id)`,
);

/** Requests as one holder was offered them, each in one attempt, in the order asked; undefined where it was not. */
export async function readOfferedRequests(
  db: Queryable,
  asked: readonly { readonly keyRequestId: string; readonly attempt: number }[],
  holder: DeviceId,
): Promise<(OfferedRequest | undefined)[]> {
  const rows = await db.query<
    Row & { place: number; declined: boolean; offered_at: Date; header_hash: Buffer | null; now: Date }
  >(readOffers, [
    asked.map(({ keyRequestId }) => keyRequestId),
    asked.map(({ attempt }) => attempt),
    holder.userId,
    holder.deviceId,
  ]);
  const byPlace = new Map(rows.map((row) => [row.place - 1, row]));
  return asked.map((_, place) => {
    const row = byPlace.get(place);
    return (
      row && {
        request: keyRequestOf(row),
        declined: row.declined,
        offeredAt: row.offered_at,
        headerHash: row.header_hash ?? undefined,
        now: row.now,
      }
    );
  });
}

const findRequesterOf = statement(
  'find_requester',
  'SELECT user_id, device_id FROM key_requests WHERE key_request_id = $1',
);

/** The device whose request it is, open or ended. */
export async function findRequester(db: Queryable, keyRequestId: string): Promise<DeviceId | undefined> {
  const [row] = await db.query<{ user_id: string; device_id: string }>(findRequesterOf, [keyRequestId]);
  return row && { userId: row.user_id, deviceId: row.device_id };
}

const declineRow = statement(
  'decline_offer',
  `WITH offered AS (
     SELECT declined_at IS NOT NULL AS before FROM offers
     WHERE key_request_id = $1 AND attempt = $2 AND user_id = $3 AND device_id = $4),
   declined AS (
     UPDATE offers SET declined_at = now(), decline_reason = $5
     WHERE key_request_id = $1 AND attempt = $2 AND user_id = $3 AND device_id = $4 AND declined_at IS NULL)
   SELECT before, now() AS now FROM offered`,
);

/**
 * Records a decline, the first one for good. When, and whether it was declined before; undefined without such an offer. The request is locked.
 */
export async function declineOffer(
  tx: Transaction,
  keyRequestId: string,
  attempt: number,
  holder: DeviceId,
  reason: string,
): Promise<{ readonly now: Date; readonly before: boolean } | undefined> {
  const [row] = await tx.query<{ now: Date; before: boolean }>(declineRow, [
    keyRequestId,
    attempt,
    holder.userId,
    holder.deviceId,
    reason,
  ]);
  return row;
}

const listOffered = statement(
  'list_offered_key_requests',
  `SELECT ${columns
    .split(',')
    .map((column) => (column.trim() === 'attempt' ? 'o.attempt' : `k.${column.trim()}`))
    .join(', ')}, o.turn
   FROM (SELECT DISTINCT ON (key_request_id) key_request_id, attempt, turn FROM offers
     WHERE user_id = $1 AND device_id = $2 AND lapses_at > now() AND declined_at IS NULL
     ORDER BY key_request_id, attempt DESC) o
   JOIN key_requests k USING (key_request_id)
   WHERE k.state = 'OFFERED' AND (o.turn, k.priority = 'BACKGROUND', k.requested_at, k.key_request_id) > ($3, $4, $5, $6)
     AND NOT EXISTS (SELECT FROM revoked_devices r WHERE r.user_id = $1 AND r.device_id = $2)
   ORDER BY o.turn, k.priority = 'BACKGROUND', k.requested_at, k.key_request_id LIMIT $7`,
);

/** A request as it is offered to a holder. */
export type ListedOffer = KeyRequest & { readonly turn: number };

/** Where a page of offers begins: after this one. */
export interface OfferPageStart {
  readonly turn: number;
  readonly background: boolean;
  readonly requestedAt: Date;
  readonly keyRequestId: string;
}

/**
 * Requests offered to a holder now, each with the attempt of its newest offer: the first of each requester, then the second, and so on; of
 * those with the same turn, what somebody looks at first.
 */
export async function listOfferedKeyRequests(
  db: Queryable,
  holder: DeviceId,
  after: OfferPageStart,
  most: number,
): Promise<ListedOffer[]> {
  const rows = await db.query<Row & { turn: number }>(listOffered, [
    holder.userId,
    holder.deviceId,
    after.turn,
    after.background,
    after.requestedAt,
    after.keyRequestId,
    most,
  ]);
  return rows.map((row) => ({ ...keyRequestOf(row), turn: row.turn }));
}

const findOffer = statement(
  'find_offer',
  `SELECT k.user_id, k.device_id FROM key_requests k
   WHERE k.key_request_id = $1 AND k.state IN ('WAITING_FOR_HOLDER', 'OFFERED')
     AND EXISTS (SELECT FROM offers o WHERE o.key_request_id = $1 AND o.user_id = $2 AND o.device_id = $3)
     AND NOT EXISTS (SELECT FROM offers o WHERE o.key_request_id = $1 AND o.user_id = $2 AND o.device_id = $3
       AND o.declined_at IS NOT NULL)
     AND NOT EXISTS (SELECT FROM revoked_devices r
       WHERE (r.user_id, r.device_id) IN (($2, $3), (k.user_id, k.device_id)))`,
);

/**
 * The requester of an open request that was offered to a holder who has not declined it; an offer that lapsed is still good. Undefined
 * otherwise, and when either device is revoked.
 */
export async function findRequesterOfOffer(
  db: Queryable,
  keyRequestId: string,
  holder: DeviceId,
): Promise<DeviceId | undefined> {
  const [row] = await db.query<{ user_id: string; device_id: string }>(findOffer, [
    keyRequestId,
    holder.userId,
    holder.deviceId,
  ]);
  return row && { userId: row.user_id, deviceId: row.device_id };
}

// A fulfilled request stays as long as its envelope. The attempts of those that go are counted on from the envelopes alone: none of theirs
// was ever accepted.
const purgeEnded = statement(
  'purge_ended_key_requests',
  `DELETE FROM key_requests WHERE key_request_id IN (
     SELECT key_request_id FROM key_requests
     WHERE state IN ('EXPIRED', 'CANCELLED', 'UNFULFILLABLE') AND ended_at < now() - $1 * interval '1 millisecond'
     ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED)
   RETURNING 1`,
);
const purgeOffers = statement(
  'purge_offers_of_fulfilled_key_requests',
  `DELETE FROM offers WHERE (key_request_id, attempt, user_id, device_id) IN (
     SELECT o.key_request_id, o.attempt, o.user_id, o.device_id FROM offers o JOIN key_requests k USING (key_request_id)
     WHERE o.offered_at < now() - $1 * interval '1 millisecond'
       AND k.state = 'FULFILLED' AND k.ended_at < now() - $1 * interval '1 millisecond' LIMIT $2)
   RETURNING 1`,
);

/** Deletes requests that ended longer ago without a key, and the offers of all that ended; at most `limit` rows each. How many. */
export async function purgeEndedKeyRequests(db: Queryable, olderThanMs: number, limit = 5_000): Promise<number> {
  const requests = await db.query(purgeEnded, [olderThanMs, limit]);
  const offers = await db.query(purgeOffers, [olderThanMs, limit]);
  return requests.length + offers.length;
}
