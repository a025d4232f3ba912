import { randomUUID } from 'node:crypto';
import { create, type DescMessage, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import { type Database, statement, type Transaction } from '@keytrail/storage';
import { currentTraceparent } from '@keytrail/telemetry';
import type { EventType } from './catalogue.ts';

/** Aggregates are spread over this many partitions; each is relayed by one process at a time. Part of the stored data. */
export const partitionCount = 16;

/** Half of what NATS accepts by default: refused at the write rather than stuck in the outbox. */
export const largestEventBytes = 512 * 1024;

/** SQL for the first migration of a service that adds events. */
export const outboxMigration = `CREATE TABLE outbox (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id text NOT NULL DEFAULT gen_random_uuid()::text,
  aggregate text NOT NULL,
  partition smallint NOT NULL CHECK (partition BETWEEN 0 AND ${partitionCount - 1}),
  subject text NOT NULL,
  payload bytea NOT NULL CHECK (octet_length(payload) <= ${largestEventBytes}),
  traceparent text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_insert_scale_factor = 0);
`;

// Numbered in the order in which they were added.
const add = statement(
  'outbox_add',
  `INSERT INTO outbox (id, aggregate, partition, subject, payload, traceparent)
   SELECT id, aggregate, partition, subject, payload, traceparent
   FROM unnest($1::text[], $2::text[], $3::smallint[], $4::text[], $5::bytea[], $6::text[]) WITH ORDINALITY
     AS added (id, aggregate, partition, subject, payload, traceparent, place) ORDER BY place`,
);

interface AddedEvent {
  readonly id: string;
  readonly aggregate: string;
  readonly partition: number;
  readonly subject: string;
  readonly bytes: Uint8Array;
  readonly traceparent: string;
}

const addedIn = new WeakMap<Transaction, AddedEvent[]>();

/** FNV-1a of the aggregate's UTF-8 bytes, modulo 16. */
export function partitionOf(aggregate: string): number {
  let hash = 0x811c9dc5;
  for (const byte of Buffer.from(aggregate)) hash = Math.imul(hash ^ byte, 0x01000193);
  return (hash >>> 0) % partitionCount;
}

export interface AddEventOptions {
  /** What the event is about, e.g. a conversation id: events of one aggregate are published in order. */
  readonly aggregate: string;
  /** Names this event for deduplication (Nats-Msg-Id and inbox); a random UUID by default. */
  readonly id?: string;
}

/**
 * Writes an event in the transaction of what it tells; it is published after the commit, and never when that rolls back.
 * Order per aggregate holds when the transactions that add its events are serialized, as by a lock on the aggregate's row.
 */
export async function addEvent<D extends DescMessage>(
  tx: Transaction,
  type: EventType<D>,
  message: MessageInitShape<D>,
  { aggregate, id = randomUUID() }: AddEventOptions,
): Promise<void> {
  const bytes = toBinary(type.message, create(type.message, message));
  const partition = partitionOf(aggregate);
  const event = { id, aggregate, partition, subject: type.subject, bytes, traceparent: currentTraceparent() };
  const added = addedIn.get(tx);
  if (added) {
    added.push(event);
    return;
  }
  const events = [event];
  addedIn.set(tx, events);
  tx.beforeCommit(() => {
    sendEvents(tx, events);
    tx.afterCommit(() => {
      for (const nudged of new Set(events.map((each) => each.partition))) nudgeRelays(tx.database, nudged);
    });
  });
}

function sendEvents(tx: Transaction, events: readonly AddedEvent[]): void {
  tx.send(add, [
    events.map(({ id }) => id),
    events.map(({ aggregate }) => aggregate),
    events.map(({ partition }) => partition),
    events.map(({ subject }) => subject),
    events.map(({ bytes }) => bytes),
    events.map(({ traceparent }) => traceparent),
  ]);
}

type Nudge = (partition: number) => void;
const relays = new WeakMap<Database, Set<Nudge>>();

function nudgeRelays(db: Database, partition: number): void {
  for (const nudge of relays.get(db) ?? []) nudge(partition);
}

/** Has `nudge` called after each commit on `db` that added events; returns how to stop that. */
export function onEventsAdded(db: Database, nudge: Nudge): () => void {
  const nudges = relays.get(db) ?? new Set();
  relays.set(db, nudges.add(nudge));
  return () => nudges.delete(nudge);
}
