import { type DescMessage, fromBinary, type MessageShape } from '@bufbuild/protobuf';
import type { Transaction } from '@keytrail/storage';
import type { EventType } from './catalogue.ts';

/** An event as it was delivered. */
export interface DeliveredEvent {
  /** The id it was published with; the same in every delivery. */
  readonly id: string;
  readonly subject: string;
  /** The protobuf message, binary. */
  readonly bytes: Uint8Array;
  /** 1 for the first delivery. */
  readonly delivery: number;
  readonly redelivered: boolean;
  readonly publishedAt: Date;
}

/** A bare handler: with a database it runs in a transaction with the inbox, without one there is no `tx`. */
export type Handler = (event: DeliveredEvent, tx: Transaction | undefined) => Promise<void>;

export interface EventHandler {
  readonly inTransaction: boolean;
  readonly run: Handler;
}

/** The subject has no handler in this build, or the bytes are not what the subject says: a newer build may know it. */
export class UnknownEvent extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'UnknownEvent';
  }
}

/** Handles an event outside a transaction, at least once: for work that calls others, or is idempotent by its own state. */
export function on<D extends DescMessage>(
  type: EventType<D>,
  run: (message: MessageShape<D>, event: DeliveredEvent) => Promise<void>,
): Record<string, EventHandler> {
  return { [type.subject]: { inTransaction: false, run: (event) => run(decode(type, event), event) } };
}

/** Handles an event in a transaction together with its inbox row: its effect in the database happens exactly once. */
export function onInTransaction<D extends DescMessage>(
  type: EventType<D>,
  run: (message: MessageShape<D>, tx: Transaction, event: DeliveredEvent) => Promise<void>,
): Record<string, EventHandler> {
  return {
    [type.subject]: {
      inTransaction: true,
      run: (event, tx) => run(decode(type, event), tx as Transaction, event),
    },
  };
}

function decode<D extends DescMessage>(type: EventType<D>, { bytes, subject }: DeliveredEvent): MessageShape<D> {
  try {
    return fromBinary(type.message, bytes);
  } catch (cause) {
    throw new UnknownEvent(`the bytes on ${subject} are no ${type.message.typeName}`, { cause });
  }
}
