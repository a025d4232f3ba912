import { type Database, statement, type Transaction } from '@keytrail/storage';
import { eventRetentionMs } from './topology.ts';

/** How long a dead letter can be looked at. It may name users. */
export const deadLetterRetentionMs = 30 * 24 * 60 * 60 * 1000;

/** How long the inbox remembers an event: longer than a stream can deliver it again. */
export const inboxRetentionMs = eventRetentionMs + 24 * 60 * 60 * 1000;

/** SQL for the first migration of a service that consumes events. */
export const inboxMigration = `CREATE TABLE inbox (
  consumer text NOT NULL,
  event_id text NOT NULL,
  received_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (consumer, event_id)
);
CREATE INDEX inbox_received_at ON inbox (received_at);
CREATE TABLE dead_letters (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  consumer text NOT NULL,
  subject text NOT NULL,
  event_id text NOT NULL,
  payload bytea NOT NULL,
  traceparent text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (consumer, event_id)
);
`;

const receive = statement(
  'inbox_receive',
  'INSERT INTO inbox (consumer, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true AS first',
);
const purge = statement(
  'inbox_purge',
  `DELETE FROM inbox WHERE (consumer, event_id) IN
     (SELECT consumer, event_id FROM inbox WHERE received_at < now() - $1 * interval '1 millisecond' LIMIT $2)
   RETURNING 1`,
);
const purgeLetters = statement(
  'dead_letters_purge',
  `DELETE FROM dead_letters WHERE id IN
     (SELECT id FROM dead_letters WHERE at < now() - $1 * interval '1 millisecond' ORDER BY id LIMIT $2)
   RETURNING 1`,
);
const bury = statement(
  'dead_letter_add',
  `INSERT INTO dead_letters (consumer, subject, event_id, payload, traceparent, reason)
   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
);

export interface DeadLetter {
  readonly consumer: string;
  readonly subject: string;
  readonly eventId: string;
  readonly payload: Uint8Array;
  readonly traceparent: string;
  readonly reason: string;
}

/** Notes in the handler's transaction that the event is handled; false when it was before. Waits for a concurrent delivery. */
export async function receiveOnce(tx: Transaction, consumer: string, eventId: string): Promise<boolean> {
  return (await tx.query(receive, [consumer, eventId])).length > 0;
}

export async function addDeadLetter(db: Database, letter: DeadLetter): Promise<void> {
  const { consumer, subject, eventId, payload, traceparent, reason } = letter;
  await db.query(bury, [consumer, subject, eventId, payload, traceparent, reason]);
}

/** Forgets events older than the retention, at most `limit` of them; returns how many. For a periodic job. */
export async function purgeInbox(db: Database, limit = 10_000, olderThanMs = inboxRetentionMs): Promise<number> {
  return (await db.query(purge, [olderThanMs, limit])).length;
}

/** Deletes dead letters older than the retention, at most `limit` of them; returns how many. For a periodic job. */
export async function purgeDeadLetters(
  db: Database,
  limit = 10_000,
  olderThanMs = deadLetterRetentionMs,
): Promise<number> {
  return (await db.query(purgeLetters, [olderThanMs, limit])).length;
}
