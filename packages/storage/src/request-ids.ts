import { createHash } from 'node:crypto';
import type { Database, Transaction } from './database.ts';
import { statement } from './statement.ts';

/** How long a request id is remembered: a repetition within this time gets the first answer. */
export const requestIdRetentionMs = 7 * 24 * 60 * 60 * 1000;

/** SQL for the first migration of a service that uses `onceByRequestId`. */
export const requestIdsMigration = `CREATE TABLE request_ids (
  caller text NOT NULL,
  request_id uuid NOT NULL,
  method text NOT NULL,
  content_digest bytea NOT NULL CHECK (octet_length(content_digest) = 32),
  response bytea,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (caller, request_id)
);
CREATE INDEX request_ids_created_at ON request_ids (created_at);
`;

export interface RequestIdentity {
  /** Who asks, as a stable text, e.g. `user/device`: request ids of different callers never meet. */
  readonly caller: string;
  readonly method: string;
  /** UUID. */
  readonly requestId: string;
  /** What was asked, in a deterministic encoding; only its SHA-256 is stored. */
  readonly content: Uint8Array;
}

/** The request id was used before by this caller, with other content or for another method. Maps to REQUEST_ID_REUSED. */
export class RequestIdReused extends Error {
  readonly requestId: string;

  constructor(requestId: string) {
    super(`request id ${requestId} was used before with other content`);
    this.name = 'RequestIdReused';
    this.requestId = requestId;
  }
}

const reserve = statement(
  'request_id_reserve',
  `INSERT INTO request_ids (caller, request_id, method, content_digest) VALUES ($1, $2, $3, $4)
   ON CONFLICT (caller, request_id) DO NOTHING RETURNING true AS reserved`,
);
const read = statement(
  'request_id_read',
  'SELECT method, content_digest, response FROM request_ids WHERE caller = $1 AND request_id = $2',
);
const remember = statement(
  'request_id_remember',
  'UPDATE request_ids SET response = $3 WHERE caller = $1 AND request_id = $2',
);
const purge = statement(
  'request_id_purge',
  `DELETE FROM request_ids WHERE (caller, request_id) IN
     (SELECT caller, request_id FROM request_ids WHERE created_at < now() - $1 * interval '1 millisecond' LIMIT $2)
   RETURNING 1`,
);

/**
 * Runs `work` once per caller and request id, in the transaction of `work`: nothing is remembered unless all of it
 * commits. A repetition gets the stored response; a concurrent one waits for the first to end (within the statement
 * timeout). Throws RequestIdReused for other content.
 */
export async function onceByRequestId(
  tx: Transaction,
  { caller, method, requestId, content }: RequestIdentity,
  work: () => Promise<Uint8Array>,
): Promise<{ response: Uint8Array; repeated: boolean }> {
  const digest = createHash('sha256').update(content).digest();
  const reserved = await tx.query(reserve, [caller, requestId, method, digest]);
  if (reserved.length > 0) {
    const response = await work();
    tx.send(remember, [caller, requestId, response]);
    return { response, repeated: false };
  }
  const [first] = await tx.query<{ method: string; content_digest: Buffer; response: Buffer | null }>(read, [
    caller,
    requestId,
  ]);
  if (!first || first.method !== method || !digest.equals(first.content_digest)) throw new RequestIdReused(requestId);
  if (!first.response) throw new Error(`request id ${requestId} was committed by work that had failed`);
  return { response: first.response, repeated: true };
}

/** Forgets request ids older than the retention, at most `limit` of them; returns how many. For a periodic job. */
export async function purgeRequestIds(
  db: Database,
  limit = 10_000,
  olderThanMs = requestIdRetentionMs,
): Promise<number> {
  return (await db.query(purge, [olderThanMs, limit])).length;
}
