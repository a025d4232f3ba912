import { ensureNats, type ServerHandle } from '@keytrail/local';
import { readSettings } from '@keytrail/settings';
import type { Database } from '@keytrail/storage';
import type { DestinationStream, Logger } from '@keytrail/telemetry';
import { jetstreamManager } from '@nats-io/jetstream';
import { startTestPostgres, type TestPostgres } from '../../storage/test/own-database.ts';
import { receiveSpans, type SpanReceiver } from '../../storage/test/received-spans.ts';
import {
  type Consumer,
  type ConsumerOptions,
  connectEvents,
  type EventBus,
  eventSettings,
  inboxMigration,
  outboxMigration,
  type Relay,
  type RelayOptions,
  startConsumer,
  startRelay,
} from '../src/index.ts';

/** PostgreSQL, NATS and telemetry for one test file. What it starts it stops at the end of the test, or of the file. */
export interface EventServers {
  readonly nats: ServerHandle;
  readonly log: Logger;
  readonly spans: SpanReceiver;
  connect(): Promise<EventBus>;
  openDatabase(sql?: string, connections?: number): Promise<Database>;
  relay(db: Database, bus: EventBus, options?: Partial<RelayOptions>): Relay;
  consume(options: Omit<ConsumerOptions, 'log'>): Promise<Consumer>;
  /** Empties NATS and sets it up anew. */
  reset(): Promise<void>;
  /** Stops relays and consumers, closes connections. */
  settle(): Promise<void>;
  stop(): Promise<void>;
}

export async function startEventServers({
  logTo,
  traceRatio = 1,
}: {
  logTo?: DestinationStream;
  traceRatio?: number;
} = {}): Promise<EventServers> {
  const spans = await receiveSpans('events-test', logTo, { traceRatio });
  const { log } = spans.telemetry;
  const [postgres, nats]: [TestPostgres, ServerHandle] = await Promise.all([
    startTestPostgres(),
    ensureNats({ own: true }),
  ]);
  const config = readSettings(eventSettings, { KEYTRAIL_NATS_URL: nats.url });
  const busy: { stop(): Promise<void> }[] = [];
  const buses: EventBus[] = [];

  async function connect(): Promise<EventBus> {
    const bus = await connectEvents({ config, log });
    buses.push(bus);
    return bus;
  }

  async function settle(): Promise<void> {
    await Promise.all(busy.splice(0).map((started) => started.stop()));
    await Promise.all(buses.splice(0).map((bus) => bus.close()));
  }

  return {
    nats,
    log,
    spans,
    connect,
    settle,
    openDatabase: (sql = '', connections = 10) =>
      postgres.openDatabase(`${outboxMigration}${inboxMigration}${sql}`, { connections }),
    relay(db, bus, options = {}) {
      const relay = startRelay({ db, bus, service: 'test', log, ...options });
      busy.push(relay);
      return relay;
    },
    async consume(options) {
      const consumer = startConsumer({ log, ...options });
      busy.push(consumer);
      await consumer.ready;
      return consumer;
    },
    async reset() {
      const bus = await connectEvents({ config, log });
      const manager = await jetstreamManager(bus.connection);
      for await (const name of manager.streams.names()) await manager.streams.delete(name);
      await bus.ensure();
      await bus.close();
    },
    async stop() {
      await settle();
      await postgres.stop();
      await nats.stop();
      await spans.stop();
    },
  };
}

/** Collects what arrives, and tells when there is enough of it. */
export function collect<T>() {
  const items: T[] = [];
  let check = () => {};
  return {
    items,
    add(item: T) {
      items.push(item);
      check();
    },
    /** Resolves once `count` items are there. */
    reaches(count: number): Promise<T[]> {
      return new Promise((resolve) => {
        check = () => {
          if (items.length >= count) resolve(items);
        };
        check();
      });
    },
  };
}
