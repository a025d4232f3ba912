import { type Queryable, statement, type Transaction } from '@keytrail/storage';
import type { DeviceId } from '../domain/device.ts';
import { deviceOfKey } from '../domain/device.ts';
import type { EndedBecause, KeyRequest, KeyRequestKind, KeyRequestState } from '../domain/key-request.ts';

/** A row of key_requests. */
export interface Row {
  key_request_id: string;
  conversation_id: string;
  session_id: string;
  epoch: bigint;
  user_id: string;
  device_id: string;
  kind: KeyRequestKind;
  state: KeyRequestState;
  attempt_base: number;
  attempt: number;
  accepted_attempt: number | null;
  holders: number;
  requested_at: Date;
  next_attempt_at: Date;
  expires_at: Date;
  holder_wanted_at: Date | null;
  ended_at: Date | null;
  ended_because: EndedBecause | null;
  version: number;
  traceparent: string;
}

export const columns = `key_request_id, conversation_id, session_id, epoch, user_id, device_id, kind, state, attempt_base, attempt,
  accepted_attempt, holders, requested_at, next_attempt_at, expires_at, holder_wanted_at, ended_at, ended_because, version, traceparent`;

export function keyRequestOf(row: Row): KeyRequest {
  return {
    keyRequestId: row.key_request_id,
    conversationId: row.conversation_id,
    sessionId: row.session_id,
    epoch: row.epoch,
    requester: { userId: row.user_id, deviceId: row.device_id },
    kind: row.kind,
    state: row.state,
    attemptBase: row.attempt_base,
    attempt: row.attempt,
    acceptedAttempt: row.accepted_attempt ?? undefined,
    holders: row.holders,
    requestedAt: row.requested_at,
    nextAttemptAt: row.next_attempt_at,
    expiresAt: row.expires_at,
    holderWantedAt: row.holder_wanted_at ?? undefined,
    endedAt: row.ended_at ?? undefined,
    endedBecause: row.ended_because ?? undefined,
    version: row.version,
    traceparent: row.traceparent,
  };
}

const open = `state IN ('WAITING_FOR_HOLDER', 'OFFERED')`;

const insertRequest = statement(
  'insert_key_request',
  `WITH base AS (
     SELECT greatest(
       (SELECT coalesce(max(attempt), 0) FROM envelopes WHERE conversation_id = $2 AND session_id = $3 AND user_id = $5 AND device_id = $6),
       (SELECT coalesce(max(attempt), 0) FROM key_requests
         WHERE conversation_id = $2 AND session_id = $3 AND user_id = $5 AND device_id = $6)) AS attempt),
   opened AS (
     INSERT INTO key_requests (key_request_id, conversation_id, session_id, epoch, user_id, device_id, kind, state, attempt_base, attempt,
       holders, requested_at, next_attempt_at, expires_at, holder_wanted_at, ended_at, ended_because, version, traceparent, writer_build)
     SELECT $1, $2, $3, $4, $5, $6, $7, $8, base.attempt, base.attempt + $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19 FROM base
     ON CONFLICT (conversation_id, session_id, user_id, device_id) WHERE ${open} DO NOTHING
     RETURNING ${columns}),
   offered AS (
     INSERT INTO offers (key_request_id, attempt, user_id, device_id, offered_at, lapses_at)
     SELECT opened.key_request_id, opened.attempt, o.user_id, o.device_id, $11, $20
     FROM opened, unnest($21::text[], $22::text[]) AS o (user_id, device_id))
   SELECT ${columns} FROM opened`,
);

/**
 * Stores a new request as its first step left it, with the offers of that step, unless the device has an open one for the session; then
 * undefined. Waits for a concurrent opener. The request counts its attempts from 0; stored, they count on from the device's earlier ones.
 */
export async function insertKeyRequest(
  tx: Transaction,
  request: KeyRequest,
  offers: { readonly to: readonly DeviceId[]; readonly lapsesAt: Date | undefined },
  writerBuild: string,
): Promise<KeyRequest | undefined> {
  const [row] = await tx.query<Row>(insertRequest, [
    request.keyRequestId,
    request.conversationId,
    request.sessionId,
    request.epoch,
    request.requester.userId,
    request.requester.deviceId,
    request.kind,
    request.state,
    request.attempt,
    request.holders,
    request.requestedAt,
    request.nextAttemptAt,
    request.expiresAt,
    request.holderWantedAt ?? null,
    request.endedAt ?? null,
    request.endedBecause ?? null,
    request.version,
    request.traceparent,
    writerBuild,
    offers.lapsesAt ?? null,
    offers.to.map(({ userId }) => userId),
    offers.to.map(({ deviceId }) => deviceId),
  ]);
  return row && keyRequestOf(row);
}

const readOpen = statement(
  'read_open_key_request',
  `SELECT ${columns} FROM key_requests
   WHERE conversation_id = $1 AND session_id = $2 AND user_id = $3 AND device_id = $4 AND ${open}`,
);

export async function readOpenKeyRequest(
  db: Queryable,
  conversationId: string,
  sessionId: string,
  { userId, deviceId }: DeviceId,
): Promise<KeyRequest | undefined> {
  const [row] = await db.query<Row>(readOpen, [conversationId, sessionId, userId, deviceId]);
  return row && keyRequestOf(row);
}

const lockRequest = statement(
  'lock_key_request',
  `SELECT ${columns} FROM key_requests WHERE key_request_id = $1 FOR UPDATE`,
);

/** The request, locked until the transaction ends: one change at a time. */
export async function lockKeyRequest(tx: Transaction, keyRequestId: string): Promise<KeyRequest | undefined> {
  const [row] = await tx.query<Row>(lockRequest, [keyRequestId]);
  return row && keyRequestOf(row);
}

const updateRequest = statement(
  'update_key_request',
  `UPDATE key_requests SET state = $3, attempt = $4, accepted_attempt = $5, holders = $6, next_attempt_at = $7, holder_wanted_at = $8,
     ended_at = $9, ended_because = $10, version = $11
   WHERE key_request_id = $1 AND version = $2 RETURNING true AS saved`,
);

/** Saves what became of a request that was read at `version`. False when somebody else changed it meanwhile: nothing is written then. */
export async function saveKeyRequest(tx: Transaction, request: KeyRequest, version: number): Promise<boolean> {
  const saved = await tx.query(updateRequest, [
    request.keyRequestId,
    version,
    request.state,
    request.attempt,
    request.acceptedAttempt ?? null,
    request.holders,
    request.nextAttemptAt,
    request.holderWantedAt ?? null,
    request.endedAt ?? null,
    request.endedBecause ?? null,
    request.version,
  ]);
  return saved.length > 0;
}

// A claim is a lease on the next look: whoever claims a due request has `$2` milliseconds before the sweep takes it up again.
const claimDue = statement(
  'claim_due_key_requests',
  `UPDATE key_requests SET next_attempt_at = now() + $2 * interval '1 millisecond', version = version + 1
   WHERE key_request_id IN (
     SELECT key_request_id FROM key_requests WHERE ${open} AND next_attempt_at <= now()
     ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED)
   RETURNING ${columns}`,
);

export async function claimDueKeyRequests(db: Queryable, most: number, leaseMs: number): Promise<KeyRequest[]> {
  return (await db.query<Row>(claimDue, [most, leaseMs])).map(keyRequestOf);
}

const claimOne = statement(
  'claim_due_key_request',
  `UPDATE key_requests SET next_attempt_at = now() + $2 * interval '1 millisecond', version = version + 1
   WHERE key_request_id = $1 AND ${open} AND next_attempt_at <= now() RETURNING ${columns}`,
);

/** Claims one request if it is open and due. */
export async function claimKeyRequest(
  db: Queryable,
  keyRequestId: string,
  leaseMs: number,
): Promise<KeyRequest | undefined> {
  const [row] = await db.query<Row>(claimOne, [keyRequestId, leaseMs]);
  return row && keyRequestOf(row);
}

const claimForHolder = statement(
  'claim_key_requests_for_holder',
  `WITH claimed AS (
     UPDATE key_requests SET next_attempt_at = now() + $4 * interval '1 millisecond', version = version + 1
     WHERE key_request_id IN (
       SELECT k.key_request_id FROM key_requests k
       WHERE k.state = 'WAITING_FOR_HOLDER' AND (k.user_id, k.device_id) <> ($1, $2) AND ($5::uuid IS NULL OR k.key_request_id > $5)
         AND EXISTS (SELECT FROM envelopes e WHERE e.conversation_id = k.conversation_id AND e.session_id = k.session_id
           AND e.user_id = $1 AND e.device_id = $2)
       ORDER BY k.key_request_id LIMIT $3 FOR UPDATE SKIP LOCKED)
     RETURNING ${columns})
   SELECT ${columns} FROM claimed ORDER BY key_request_id`,
);

/** Claims requests that wait and that a device which just attached could fulfil: those after a key, in the order of their keys. */
export async function claimKeyRequestsForHolder(
  db: Queryable,
  { userId, deviceId }: DeviceId,
  { after, most }: { readonly after: string | undefined; readonly most: number },
  leaseMs: number,
): Promise<KeyRequest[]> {
  return (await db.query<Row>(claimForHolder, [userId, deviceId, most, leaseMs, after ?? null])).map(keyRequestOf);
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
  `SELECT now() AS now, s.initiator_user_id, s.initiator_device_id,
     EXISTS (SELECT FROM revoked_devices r WHERE r.user_id = $3 AND r.device_id = $4) AS requester_revoked,
     coalesce((SELECT array_agg(DISTINCT e.user_id || ' ' || e.device_id)
       FROM envelopes e LEFT JOIN revoked_devices r ON r.user_id = e.user_id AND r.device_id = e.device_id
       WHERE e.conversation_id = $1 AND e.session_id = $2 AND r.user_id IS NULL), '{}') AS holders,
     coalesce((SELECT array_agg(e.sealer_user_id || ' ' || e.sealer_device_id) FROM envelopes e
       WHERE e.conversation_id = $1 AND e.session_id = $2 AND e.user_id = $3 AND e.device_id = $4
         AND e.rejected_at IS NOT NULL), '{}') AS rejected,
     (SELECT json_agg(json_build_array(o.user_id, o.device_id, extract(epoch FROM o.lapses_at) * 1000, o.declined_at IS NOT NULL))
       FROM offers o WHERE o.key_request_id = $5) AS offers
   FROM sessions s WHERE s.conversation_id = $1 AND s.session_id = $2`,
);

/** Who could help with a request, and what they were asked and answered so far. Undefined when the session is gone. */
export async function readHolders(db: Queryable, request: KeyRequest): Promise<HolderRows | undefined> {
  const [row] = await db.query<{
    now: Date;
    requester_revoked: boolean;
    initiator_user_id: string;
    initiator_device_id: string;
    holders: string[];
    rejected: string[];
    offers: [string, string, number, boolean][] | null;
  }>(readHolderRows, [
    request.conversationId,
    request.sessionId,
    request.requester.userId,
    request.requester.deviceId,
    request.keyRequestId,
  ]);
  return (
    row && {
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
    }
  );
}

const insertOfferRows = statement(
  'insert_offers',
  `INSERT INTO offers (key_request_id, attempt, user_id, device_id, offered_at, lapses_at)
   SELECT $1, $2, o.user_id, o.device_id, $5, $6 FROM unnest($3::text[], $4::text[]) AS o (user_id, device_id)`,
);

export async function insertOffers(
  tx: Transaction,
  request: KeyRequest,
  to: readonly DeviceId[],
  at: { readonly offeredAt: Date; readonly lapsesAt: Date },
): Promise<void> {
  await tx.query(insertOfferRows, [
    request.keyRequestId,
    request.attempt,
    to.map(({ userId }) => userId),
    to.map(({ deviceId }) => deviceId),
    at.offeredAt,
    at.lapsesAt,
  ]);
}

export interface OfferedRequest {
  readonly request: KeyRequest;
  readonly declined: boolean;
  readonly headerHash: Uint8Array | undefined;
  readonly now: Date;
}

const readOffer = statement(
  'read_offer',
  `SELECT ${columns
    .split(',')
    .map((column) => `k.${column.trim()}`)
    .join(', ')}, o.declined_at IS NOT NULL AS declined, s.header_hash, now() AS now
   FROM offers o JOIN key_requests k USING (key_request_id) JOIN sessions s USING (conversation_id, session_id)
   WHERE o.key_request_id = $1 AND o.attempt = $2 AND o.user_id = $3 AND o.device_id = $4`,
);

/** A request as one holder was offered it in one attempt; undefined when it was not. */
export async function readOfferedRequest(
  db: Queryable,
  keyRequestId: string,
  attempt: number,
  holder: DeviceId,
): Promise<OfferedRequest | undefined> {
  const [row] = await db.query<Row & { declined: boolean; header_hash: Buffer | null; now: Date }>(readOffer, [
    keyRequestId,
    attempt,
    holder.userId,
    holder.deviceId,
  ]);
  return (
    row && {
      request: keyRequestOf(row),
      declined: row.declined,
      headerHash: row.header_hash ?? undefined,
      now: row.now,
    }
  );
}

const declineRow = statement(
  'decline_offer',
  `UPDATE offers SET declined_at = coalesce(declined_at, now()), decline_reason = coalesce(decline_reason, $5)
   WHERE key_request_id = $1 AND attempt = $2 AND user_id = $3 AND device_id = $4 RETURNING now() AS now`,
);

/** Records a decline, the first one for good. When it was, or undefined without such an offer. */
export async function declineOffer(
  tx: Transaction,
  keyRequestId: string,
  attempt: number,
  holder: DeviceId,
  reason: string,
): Promise<Date | undefined> {
  const [row] = await tx.query<{ now: Date }>(declineRow, [
    keyRequestId,
    attempt,
    holder.userId,
    holder.deviceId,
    reason,
  ]);
  return row?.now;
}

const listOffered = statement(
  'list_offered_key_requests',
  `SELECT ${columns
    .split(',')
    .map((column) => (column.trim() === 'attempt' ? 'o.attempt' : `k.${column.trim()}`))
    .join(', ')}
   FROM (SELECT key_request_id, max(attempt) AS attempt FROM offers
     WHERE user_id = $1 AND device_id = $2 AND lapses_at > now() AND declined_at IS NULL GROUP BY key_request_id) o
   JOIN key_requests k USING (key_request_id)
   WHERE k.state = 'OFFERED' AND (k.requested_at, k.key_request_id) > ($3, $4)
     AND NOT EXISTS (SELECT FROM revoked_devices r WHERE r.user_id = $1 AND r.device_id = $2)
   ORDER BY k.requested_at, k.key_request_id LIMIT $5`,
);

/** Requests offered to a holder now, oldest first, each with the attempt of its newest offer. */
export async function listOfferedKeyRequests(
  db: Queryable,
  holder: DeviceId,
  after: { readonly requestedAt: Date; readonly keyRequestId: string },
  most: number,
): Promise<KeyRequest[]> {
  const rows = await db.query<Row>(listOffered, [
    holder.userId,
    holder.deviceId,
    after.requestedAt,
    after.keyRequestId,
    most,
  ]);
  return rows.map(keyRequestOf);
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
