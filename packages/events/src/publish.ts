import { randomUUID } from 'node:crypto';
import { create, type DescMessage, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import {
  attr,
  contextFromTraceparent,
  currentTraceparent,
  isSampled,
  SpanKind,
  tracer,
  withSpan,
} from '@keytrail/telemetry';
import { headers } from '@nats-io/nats-core';
import type { EventBus } from './bus.ts';
import type { EventType } from './catalogue.ts';

/** Headers of an event. The body is the binary form of the protobuf message that belongs to the subject. */
export const eventHeader = {
  traceparent: 'traceparent',
  id: 'Nats-Msg-Id',
  /** What the event is about; a consumer handles events of one aggregate one after another. */
  aggregate: 'Keytrail-Aggregate',
} as const;

const publishTimeoutMs = 2000;

export interface OutboxRow {
  readonly seq: bigint;
  readonly id: string;
  readonly aggregate: string;
  readonly subject: string;
  readonly payload: Uint8Array;
  readonly traceparent: string;
  readonly created_at: Date;
}

/**
 * Publishes rows, different aggregates at once, those of one aggregate one after another: a later one goes out only
 * when JetStream has stored the earlier. Returns what is stored, and the first failure if there was one.
 */
export async function publishInOrder(
  bus: EventBus,
  rows: readonly OutboxRow[],
): Promise<{ published: OutboxRow['seq'][]; failure?: unknown }> {
  const published: OutboxRow['seq'][] = [];
  const failures: unknown[] = [];
  const aggregates = Map.groupBy(rows, ({ aggregate }) => aggregate);
  await Promise.all(
    [...aggregates.values()].map(async (events) => {
      try {
        for (const row of events) {
          await publishRow(bus, row);
          published.push(row.seq);
        }
      } catch (error) {
        failures.push(error);
      }
    }),
  );
  return failures.length > 0 ? { published, failure: failures[0] } : { published };
}

async function publishRow(bus: EventBus, row: OutboxRow): Promise<void> {
  const parent = contextFromTraceparent(row.traceparent);
  const begun = new Date();
  const waited = { [attr.outboxWaitMs]: Math.max(0, begun.getTime() - row.created_at.getTime()) };
  await withSpan(`publish ${row.subject}`, { ...producer(row.subject, row.id, waited), parent }, () =>
    send(bus, row.subject, row.id, row.aggregate, row.payload),
  );
  recordWait(row, begun);
}

/** The time between the write and the publication as a hop of its own: once, when the row is out, however often that was tried. */
function recordWait(row: OutboxRow, publishedAt: Date): void {
  // A long wait would be kept as slow, and stand alone where nothing else of the trace is.
  if (!isSampled(row.traceparent)) return;
  const startTime = row.created_at < publishedAt ? row.created_at : publishedAt;
  const attributes = { [attr.messagingDestination]: row.subject, [attr.messagingMessageId]: row.id };
  tracer()
    .startSpan('outbox wait', { startTime, attributes }, contextFromTraceparent(row.traceparent))
    .end(publishedAt);
}

/**
 * Publishes a hint straight to JetStream, without an outbox: for what may be lost, because state is pulled anyway.
 * Never throws; a failure is logged.
 */
export async function publishHint<D extends DescMessage>(
  bus: EventBus,
  type: EventType<D>,
  message: MessageInitShape<D>,
): Promise<void> {
  const id = randomUUID();
  try {
    await withSpan(`publish ${type.subject}`, producer(type.subject, id), () =>
      send(bus, type.subject, id, '', toBinary(type.message, create(type.message, message))),
    );
  } catch (error) {
    bus.log.warn({ err: error, subject: type.subject }, 'a hint could not be published');
  }
}

function producer(subject: string, id: string, more: Record<string, number> = {}) {
  return {
    kind: SpanKind.PRODUCER,
    attributes: {
      [attr.messagingSystem]: 'nats',
      [attr.messagingDestination]: subject,
      [attr.messagingOperation]: 'publish',
      [attr.messagingOperationType]: 'send',
      [attr.messagingMessageId]: id,
      ...more,
    },
  };
}

async function send(bus: EventBus, subject: string, id: string, aggregate: string, bytes: Uint8Array): Promise<void> {
  const sent = headers();
  const traceparent = currentTraceparent();
  if (traceparent) sent.set(eventHeader.traceparent, traceparent);
  if (aggregate) sent.set(eventHeader.aggregate, aggregate);
  await bus.jetstream.publish(subject, bytes, { msgID: id, headers: sent, timeout: publishTimeoutMs });
}
