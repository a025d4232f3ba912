import { type Queryable, statement } from '@keytrail/storage';
import type { DeviceId } from '../domain/device.ts';
import { isOpen, type KeyRequest, type KeyRequestState } from '../domain/key-request.ts';
import { columns, keyRequestOf, type Row } from './key-requests.ts';
import type { PageStart } from './list-key-requests.ts';

/** A key request with what only operators see of it. */
export interface SeenKeyRequest {
  readonly request: KeyRequest;
  readonly writerBuild: string;
  /** Oldest first, at most 100. */
  readonly offers: readonly SeenOffer[];
}

export interface SeenOffer {
  readonly holder: DeviceId;
  readonly attempt: number;
  readonly offeredAt: Date;
  readonly lapsesAt: Date;
  readonly declinedAt: Date | undefined;
  /** Empty unless it was declined. */
  readonly declinedBecause: string;
}

/** What is not set does not restrict. */
export interface KeyRequestFilter {
  readonly states: readonly KeyRequestState[];
  readonly keyRequestId: string | undefined;
  readonly conversationId: string | undefined;
  readonly userId: string | undefined;
  readonly deviceId: string | undefined;
  readonly olderThanMs: number;
}

interface SeenRow extends Row {
  writer_build: string;
  offers: [string, string, number, number, number, string | null, number | null][] | null;
}

const seen = `${columns
  .split(',')
  .map((column) => `k.${column.trim()}`)
  .join(', ')}, k.writer_build,
  (SELECT json_agg(json_build_array(o.user_id, o.device_id, o.attempt, extract(epoch FROM o.offered_at) * 1000,
     extract(epoch FROM o.lapses_at) * 1000, o.decline_reason, extract(epoch FROM o.declined_at) * 1000))
   FROM (SELECT * FROM offers WHERE offers.key_request_id = k.key_request_id
     ORDER BY offered_at, attempt, user_id, device_id LIMIT 100) o) AS offers`;

const findIn = (from: string) => `SELECT ${seen} FROM ${from} k
   WHERE (cardinality($1::text[]) = 0 OR k.state = ANY ($1)) AND ($2::uuid IS NULL OR k.key_request_id = $2)
     AND ($3::uuid IS NULL OR k.conversation_id = $3) AND ($4::text IS NULL OR k.user_id = $4)
     AND ($5::text IS NULL OR k.device_id = $5) AND ($6::bigint = 0 OR k.requested_at <= now() - $6 * interval '1 millisecond')
     AND (k.requested_at, k.key_request_id) > ($7, $8)
   ORDER BY k.requested_at, k.key_request_id LIMIT $9`;
const find = statement('find_key_requests', findIn('key_requests'));
// In the order of their age, the open ones come after all that have ended: they are gathered by an index of their own and sorted then.
const findOpen = statement(
  'find_open_key_requests',
  `WITH open AS MATERIALIZED (SELECT * FROM key_requests WHERE state IN ('WAITING_FOR_HOLDER', 'OFFERED')) ${findIn('open')}`,
);

/** Key requests of all devices, oldest first. */
export async function findKeyRequests(
  db: Queryable,
  filter: KeyRequestFilter,
  after: PageStart,
  most: number,
): Promise<SeenKeyRequest[]> {
  const { keyRequestId, conversationId, userId, states } = filter;
  const ofAll = keyRequestId === undefined && conversationId === undefined && userId === undefined;
  const openOnly = states.length > 0 && states.every(isOpen);
  const rows = await db.query<SeenRow>(ofAll && openOnly ? findOpen : find, [
    states,
    keyRequestId ?? null,
    conversationId ?? null,
    userId ?? null,
    filter.deviceId ?? null,
    filter.olderThanMs,
    after.requestedAt,
    after.keyRequestId,
    most,
  ]);
  return rows.map(seenOf);
}

const read = statement('read_key_request', `SELECT ${seen} FROM key_requests k WHERE k.key_request_id = $1`);

export async function readKeyRequest(db: Queryable, keyRequestId: string): Promise<SeenKeyRequest | undefined> {
  const [row] = await db.query<SeenRow>(read, [keyRequestId]);
  return row && seenOf(row);
}

const findOfSession = statement(
  'find_key_requests_of_session',
  `SELECT ${seen} FROM key_requests k
   WHERE k.conversation_id = $1 AND k.session_id = $2 AND k.user_id = $3 AND k.device_id = $4
   ORDER BY k.requested_at DESC, k.key_request_id DESC LIMIT $5`,
);

/** The newest of one device for one session, oldest first. */
export async function findKeyRequestsOfSession(
  db: Queryable,
  { conversationId, sessionId }: { readonly conversationId: string; readonly sessionId: string },
  { userId, deviceId }: DeviceId,
  most: number,
): Promise<SeenKeyRequest[]> {
  const rows = await db.query<SeenRow>(findOfSession, [conversationId, sessionId, userId, deviceId, most]);
  return rows.reverse().map(seenOf);
}

// By the clock of the database, which says what is due.
const nudge = statement(
  'nudge_key_request',
  `UPDATE key_requests SET next_attempt_at = now(), version = version + 1
   WHERE key_request_id = $1 AND state IN ('WAITING_FOR_HOLDER', 'OFFERED') RETURNING ${columns}`,
);

/** Makes an open request due now; undefined when there is none. */
export async function nudgeKeyRequest(db: Queryable, keyRequestId: string): Promise<KeyRequest | undefined> {
  const [row] = await db.query<Row>(nudge, [keyRequestId]);
  return row && keyRequestOf(row);
}

function seenOf(row: SeenRow): SeenKeyRequest {
  return {
    request: keyRequestOf(row),
    writerBuild: row.writer_build,
    offers: (row.offers ?? []).map(([userId, deviceId, attempt, offeredAtMs, lapsesAtMs, because, declinedAtMs]) => ({
      holder: { userId, deviceId },
      attempt,
      offeredAt: new Date(Number(offeredAtMs)),
      lapsesAt: new Date(Number(lapsesAtMs)),
      declinedAt: declinedAtMs === null ? undefined : new Date(Number(declinedAtMs)),
      declinedBecause: because ?? '',
    })),
  };
}
