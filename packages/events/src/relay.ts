import type { Database, DedicatedConnection } from '@keytrail/storage';
import { context, type Logger, ROOT_CONTEXT } from '@keytrail/telemetry';
import type { EventBus } from './bus.ts';
import { onEventsAdded } from './outbox.ts';
import { type OutboxRow, publishInOrder } from './publish.ts';
import { type HeldPartitions, joinRelays } from './relay-partitions.ts';
import { warnSparingly } from './warn-sparingly.ts';

export interface RelayOptions {
  readonly db: Database;
  readonly bus: EventBus;
  readonly service: string;
  readonly log: Logger;
  /** How often to look without a nudge; 500 ms. */
  readonly pollMs?: number;
  /** How often to look for relays that came or went without saying so; 5 s. */
  readonly rebalanceMs?: number;
}

/** Publishes the outbox of one database. */
export interface Relay {
  /** Looks now; commits on the same Database do this by themselves. */
  nudge(): void;
  /** Whether what is written now gets out at once: NATS is there, stores what is published, and nothing is left of a time when it did not. */
  isFlowing(): boolean;
  /** Resolves when the batch at hand is published and its partitions are free for other relays. */
  stop(): Promise<void>;
}

const batchSize = 128;
const longestBackoffMs = 5000;

function backoffMs(failures: number): number {
  return Math.min(50 * 2 ** failures, longestBackoffMs);
}

// What was published goes with the look for what comes next: one statement for a batch while there is one after another.
const nextText = `WITH done AS (DELETE FROM outbox WHERE seq = ANY ($2::bigint[]))
  SELECT seq, id, aggregate, subject, payload, traceparent, created_at FROM outbox
  WHERE partition = ANY ($1::smallint[]) AND seq <> ALL ($2::bigint[]) ORDER BY seq LIMIT ${batchSize}`;

/**
 * Starts relaying. A partition is relayed by one relay at a time, over all replicas of the service; partitions are
 * shared evenly. Rows are deleted once JetStream has stored them, so that a crash in between publishes them again with
 * the same Nats-Msg-Id. While NATS or PostgreSQL is away it waits and tries again; nothing is lost.
 */
export function startRelay({ db, bus, service, log, pollMs = 500, rebalanceMs = 5000 }: RelayOptions): Relay {
  const subject = `keytrail.outbox.${service}`;
  let stopping = false;
  let awake = false;
  let rebalanceDue = true;
  let wake = () => {};
  let partitions: HeldPartitions | undefined;
  /** Sessions in a row that ended before they read the outbox. */
  let fruitless = 0;
  /** No longer once NATS is away or does not store; again when the backlog is published. */
  let flowing = true;
  /** While the database does not fit the build its partitions are free for a relay of another build. */
  const isShut = () => db.schema.closed !== undefined;
  const warnOfSession = warnSparingly(log, 'the relay lost its database session');
  const warnOfPublishing = warnSparingly(log, 'events could not be published yet');

  function nudge(): void {
    awake = true;
    wake();
  }

  // A sleep that a nudge ends early, or skips when it came meanwhile.
  function rest(ms: number): Promise<void> {
    if (awake || stopping) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  function tellOthers(what: string): void {
    if (bus.isConnected()) bus.connection.publish(subject, what);
  }

  function nudgeHolder(partition: number): void {
    if (partitions?.held.has(partition)) nudge();
    else tellOthers(String(partition));
  }

  const heard = bus.connection.subscribe(subject, {
    callback(error, message) {
      if (error) return;
      const what = message.string();
      if (what === 'rebalance') rebalanceDue = true;
      if (what === 'rebalance' || partitions?.held.has(Number(what))) nudge();
    },
  });
  const forgetEvents = onEventsAdded(db, nudgeHolder);
  const forgetReconnect = bus.onReconnect(nudge);
  const forgetSchema = db.schema.onChange(nudge);

  /** Publishes what is waiting, having deleted what was published before. */
  async function relayBatch(
    session: DedicatedConnection,
    held: ReadonlySet<number>,
    done: readonly bigint[],
  ): Promise<{ published: bigint[]; failure?: unknown }> {
    const next = { name: 'outbox_next', text: nextText, values: [[...held], done] };
    const { rows } = await session.query<OutboxRow>(next);
    return rows.length === 0 ? { published: [] } : publishInOrder(bus, rows);
  }

  async function forget(session: DedicatedConnection, done: readonly bigint[]): Promise<void> {
    if (done.length === 0) return;
    const text = 'DELETE FROM outbox WHERE seq = ANY ($1::bigint[])';
    await session.query({ name: 'outbox_done', text, values: [done] });
  }

  async function relay(session: DedicatedConnection): Promise<void> {
    let broken: Error | undefined;
    session.on('error', (error) => {
      broken = error;
      nudge();
    });
    // The outbox is mostly empty, so its statistics would lead to plans that are wrong for a backlog.
    await session.query('SET enable_seqscan = off; SET enable_bitmapscan = off');
    partitions = await joinRelays(session);
    tellOthers('rebalance');
    let failures = 0;
    let rebalanceAt = 0;
    /** Published, and still in the outbox. */
    let done: bigint[] = [];
    while (!stopping && !isShut()) {
      if (broken) throw broken;
      awake = false;
      if (rebalanceDue || Date.now() >= rebalanceAt) {
        rebalanceDue = false;
        rebalanceAt = Date.now() + rebalanceMs;
        // Whoever takes over a partition would publish them again.
        await forget(session, done);
        done = [];
        if (await partitions.rebalance()) tellOthers('rebalance');
      }
      if (!bus.isConnected()) {
        flowing = false;
        await forget(session, done);
        done = [];
        await rest(pollMs);
        continue;
      }
      const { published, failure } = await relayBatch(session, partitions.held, done);
      done = published;
      fruitless = 0;
      failures = failure === undefined ? 0 : failures + 1;
      if (failure !== undefined) {
        flowing = false;
        await forget(session, done);
        done = [];
        warnOfPublishing(failure);
        awake = false;
        await rest(backoffMs(failures));
      } else if (done.length === 0) {
        flowing = true;
        await rest(pollMs);
      }
    }
    await forget(session, done);
  }

  async function run(): Promise<void> {
    while (!stopping) {
      if (isShut()) {
        awake = false;
        await rest(longestBackoffMs);
        continue;
      }
      let session: DedicatedConnection | undefined;
      try {
        session = await db.dedicatedConnection();
        await relay(session);
      } catch (error) {
        fruitless++;
        warnOfSession(error);
        awake = false;
        await rest(backoffMs(fruitless));
      } finally {
        partitions = undefined;
        const ended = session?.end().catch(() => {});
        // One that was lost may never answer; after a stop the locks must be free.
        if (stopping || isShut()) await ended;
      }
    }
  }

  // The loop belongs to no request, whoever starts it.
  const finished = context.with(ROOT_CONTEXT, run);
  return {
    nudge,
    isFlowing: () => flowing && bus.isConnected() && !isShut(),
    async stop() {
      stopping = true;
      wake();
      await finished;
      forgetEvents();
      forgetReconnect();
      forgetSchema();
      heard.unsubscribe();
      tellOthers('rebalance');
    },
  };
}
