import type { Database, Transaction } from '@keytrail/storage';
import {
  attr,
  context,
  contextFromTraceparent,
  count,
  describeError,
  isSampled,
  keepTrace,
  type Logger,
  linkFromTraceparent,
  measure,
  metricAttr,
  ROOT_CONTEXT,
  SpanKind,
  withSpan,
} from '@keytrail/telemetry';
import type { ConsumerMessages, JsMsg } from '@nats-io/jetstream';
import type { EventBus } from './bus.ts';
import type { ConsumerType } from './catalogue.ts';
import type { KeptDeadLetter } from './dead-letters.ts';
import { type DeliveredEvent, type EventHandler, type Handler, UnknownEvent } from './handlers.ts';
import { addDeadLetter, receiveOnce } from './inbox.ts';
import { eventHeader } from './publish.ts';
import { sourcesOf } from './topology.ts';

export interface ConsumerOptions {
  readonly bus: EventBus;
  readonly consumer: ConsumerType;
  /** Holds the inbox and the dead letters. Without it handlers get no transaction, and dead letters are only logged. */
  readonly db?: Database;
  /** By subject: `{ ...on(keyRequestDue, …), ...onInTransaction(deviceListChanged, …) }`, or bare functions. */
  readonly handlers: Readonly<Record<string, EventHandler | Handler>>;
  readonly log: Logger;
  /** Events handled at once, of different aggregates; 16. Of one aggregate always one after another, in this process. */
  readonly concurrency?: number;
  /** Deliveries of one event after which it becomes a dead letter; 8. */
  readonly maxDeliveries?: number;
  /** Wait before the next delivery, by the number of the failed one; 200 ms doubling up to 30 s. */
  readonly retryDelayMs?: (delivery: number) => number;
  /** A first delivery later than this after the publication starts a trace of its own, with a link; 30 s. */
  readonly freshMs?: number;
}

export interface Consumer {
  /** Resolves once the consumer receives from all its streams, or waits until its database fits the build. */
  readonly ready: Promise<void>;
  /** Takes no more events, and resolves when those at hand are handled. */
  stop(): Promise<void>;
}

// Silence for two of these means that the subscription is dead; the client's default notices after half a minute.
const idleHeartbeatMs = 2500;

// It is woken when the database fits; this is for nothing but a wake-up that was missed.
const shutRestMs = 5000;

/**
 * Starts handling the events of a consumer; replicas share them. An event is acknowledged when its handler resolves;
 * when it throws, or nothing knows the subject or can decode it, it is delivered again later, and after maxDeliveries
 * kept as a dead letter. A handler in a transaction has effect exactly once; any other at least once. While the database does not fit the
 * build it receives nothing: the events are for replicas of a build that does.
 */
export function startConsumer({
  bus,
  consumer,
  db,
  handlers,
  log,
  concurrency = 16,
  maxDeliveries = 8,
  retryDelayMs = (delivery) => Math.min(200 * 2 ** (delivery - 1), 30_000),
  freshMs = 30_000,
}: ConsumerOptions): Consumer {
  for (const [subject, handler] of Object.entries(handlers)) {
    if (typeof handler !== 'function' && handler.inTransaction && !db) {
      throw new Error(`the handler of ${subject} needs a transaction, but ${consumer.name} has no database`);
    }
  }
  const running = new Set<Promise<void>>();
  const chains = new Map<string, Promise<void>>();
  const subscriptions = new Set<ConsumerMessages>();
  let stopping = false;
  const wakers = new Set<() => void>();
  const wakeLoops = () => {
    for (const wake of [...wakers]) wake();
  };
  const isShut = () => db?.schema.closed !== undefined;
  const forgetSchema = db?.schema.onChange(() => {
    if (isShut()) for (const messages of subscriptions) void messages.close();
    else wakeLoops();
  });

  function handlerOf(subject: string): EventHandler {
    const handler = handlers[subject];
    if (!handler) throw new UnknownEvent(`nothing here handles ${subject}`);
    return typeof handler === 'function' ? { inTransaction: db !== undefined, run: handler } : handler;
  }

  async function handle(event: DeliveredEvent): Promise<void> {
    const { inTransaction, run } = handlerOf(event.subject);
    if (!inTransaction || !db) return run(event, undefined);
    return db.transaction(async (tx) => {
      if (await receiveOnce(tx, consumer.name, event.id)) await run(event, tx);
    });
  }

  async function replay(letter: KeptDeadLetter, tx: Transaction): Promise<void> {
    const { inTransaction, run } = handlerOf(letter.subject);
    const { eventId: id, subject, payload: bytes, at: publishedAt } = letter;
    const event: DeliveredEvent = { id, subject, bytes, delivery: maxDeliveries + 1, redelivered: true, publishedAt };
    const link = linkFromTraceparent(letter.traceparent);
    const attributes = {
      [attr.messagingSystem]: 'nats',
      [attr.messagingDestination]: subject,
      [attr.messagingOperation]: 'process',
      [attr.messagingOperationType]: 'process',
      [attr.messagingConsumer]: consumer.name,
      [attr.messagingMessageId]: id,
      [attr.messagingDelivery]: event.delivery,
    };
    await withSpan(
      `process ${subject}`,
      { kind: SpanKind.CONSUMER, ...(link && { links: [link] }), attributes },
      async () => {
        if (!inTransaction) return run(event, undefined);
        if (await receiveOnce(tx, consumer.name, id)) await run(event, tx);
      },
    );
  }

  async function deliver(message: JsMsg): Promise<void> {
    const { subject, headers, info } = message;
    const traceparent = headers?.get(eventHeader.traceparent) ?? '';
    const publishedAt = new Date(info.timestampNanos / 1e6);
    const event: DeliveredEvent = {
      id: headers?.get(eventHeader.id) || `${info.stream}:${info.streamSequence}`,
      subject,
      bytes: message.data,
      delivery: info.deliveryCount,
      redelivered: info.deliveryCount > 1,
      publishedAt,
    };
    const fresh = !event.redelivered && Date.now() - publishedAt.getTime() < freshMs;
    const link = fresh ? undefined : linkFromTraceparent(traceparent);
    if (event.redelivered) count('redeliveries', 1, { [attr.messagingConsumer]: consumer.name });
    const from = performance.now();
    const handled = (outcome: 'handled' | 'again' | 'dead_letter') =>
      measure('messageProcessing', (performance.now() - from) / 1000, {
        [attr.messagingSystem]: 'nats',
        [attr.messagingConsumer]: consumer.name,
        // What nothing here knows may be anything.
        [attr.messagingDestination]: handlers[subject] ? subject : '_OTHER',
        [metricAttr.messagingOutcome]: outcome,
      });
    const alive = setInterval(() => message.working(), bus.ackWaitMs / 3);
    let outcome: 'handled' | 'again' | 'dead_letter' | undefined;
    try {
      await withSpan(
        `process ${subject}`,
        {
          kind: SpanKind.CONSUMER,
          parent: fresh ? contextFromTraceparent(traceparent) : ROOT_CONTEXT,
          ...(link && { links: [link] }),
          attributes: {
            [attr.messagingSystem]: 'nats',
            [attr.messagingDestination]: subject,
            [attr.messagingOperation]: 'process',
            [attr.messagingOperationType]: 'process',
            [attr.messagingConsumer]: consumer.name,
            [attr.messagingMessageId]: event.id,
            [attr.messagingDelivery]: event.delivery,
          },
        },
        async () => {
          // A trace of its own has no parent that says so: what comes of a kept one is kept, too.
          if (!fresh && isSampled(traceparent)) keepTrace('event of a kept trace');
          try {
            await handle(event);
          } catch (error) {
            // In the span, so that what the log says of it leads to the trace.
            outcome = await failed(message, event, traceparent, error);
            throw error;
          }
        },
      );
      message.ack();
      outcome = 'handled';
    } catch (error) {
      // Else it was told above.
      if (!outcome) throw error;
    } finally {
      clearInterval(alive);
      if (outcome) handled(outcome);
    }
  }

  async function failed(
    message: JsMsg,
    event: DeliveredEvent,
    traceparent: string,
    error: unknown,
  ): Promise<'again' | 'dead_letter'> {
    const told = {
      err: error,
      consumer: consumer.name,
      subject: event.subject,
      eventId: event.id,
      delivery: event.delivery,
    };
    if (event.delivery < maxDeliveries) {
      log.warn(told, 'an event could not be handled; it comes again');
      message.nak(retryDelayMs(event.delivery));
      return 'again';
    }
    const { type, message: why } = describeError(error);
    const reason = `${type}: ${why}`;
    try {
      if (db) {
        const { id: eventId, subject, bytes: payload } = event;
        await addDeadLetter(db, { consumer: consumer.name, subject, eventId, payload, traceparent, reason });
      }
    } catch (unkept) {
      log.error({ ...told, unkept }, 'a dead letter could not be kept; the event comes again');
      message.nak(retryDelayMs(event.delivery));
      return 'again';
    }
    log.error(told, 'an event is a dead letter');
    message.term(reason.slice(0, 200));
    return 'dead_letter';
  }

  function begin(message: JsMsg): void {
    const aggregate = message.headers?.get(eventHeader.aggregate);
    const work = (aggregate ? (chains.get(aggregate) ?? Promise.resolve()) : Promise.resolve())
      .then(() => deliver(message))
      .catch((error) => log.error({ err: error, consumer: consumer.name }, 'an event could not be settled'))
      .then(() => {
        running.delete(work);
        if (aggregate && chains.get(aggregate) === work) chains.delete(aggregate);
      });
    running.add(work);
    if (aggregate) chains.set(aggregate, work);
  }

  async function receive(stream: string, ready: () => void): Promise<void> {
    for (let failures = 0; !stopping; failures++) {
      if (isShut()) {
        ready();
        failures = 0;
        await pause(shutRestMs);
        continue;
      }
      try {
        const source = await bus.jetstream.consumers.get(stream, consumer.name);
        const messages = await source.consume({ max_messages: concurrency * 2, idle_heartbeat: idleHeartbeatMs });
        subscriptions.add(messages);
        if (isShut()) void messages.close();
        void restoreWhenMissing(messages);
        ready();
        failures = 0;
        for await (const message of messages) {
          if (stopping || isShut()) message.nak();
          else begin(message);
          if (running.size >= concurrency) await Promise.race(running);
        }
        subscriptions.delete(messages);
      } catch (error) {
        if (!stopping) log.warn({ err: error, consumer: consumer.name, stream }, 'the consumer cannot receive');
      }
      if (!stopping) await pause(Math.min(50 * 2 ** failures, 5000));
    }
  }

  // A NATS that lost its state gets its streams and consumers back; what was in them is repaired by who polls state.
  async function restoreWhenMissing(messages: ConsumerMessages): Promise<void> {
    for await (const { type } of messages.status()) {
      if (type !== 'consumer_not_found' && type !== 'stream_not_found' && type !== 'consumer_deleted') continue;
      log.warn({ consumer: consumer.name, lost: type }, 'NATS lost a consumer; setting it up again');
      await bus.ensure().catch((error) => log.error({ err: error }, 'streams could not be restored'));
      await messages.close();
    }
  }

  function pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        wakers.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      wakers.add(wake);
    });
  }

  bus.replays.set(consumer.name, replay);
  const sources = sourcesOf(consumer).map(({ stream }) => {
    const { promise, resolve } = Promise.withResolvers<void>();
    return { ready: promise, done: context.with(ROOT_CONTEXT, () => receive(stream, resolve)) };
  });
  return {
    ready: Promise.all(sources.map(({ ready }) => ready)).then(() => {}),
    async stop() {
      stopping = true;
      bus.replays.delete(consumer.name);
      forgetSchema?.();
      wakeLoops();
      await Promise.all([...subscriptions].map((messages) => messages.close()));
      await Promise.all(sources.map(({ done }) => done));
      await Promise.all(running);
      if (bus.isConnected()) await bus.connection.flush();
    },
  };
}
