import { timestampDate, timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { UserErasedSchema, UserErasureRequested } from '@keytrail/contracts';
import { type Database, statement, type Transaction } from '@keytrail/storage';
import { keepTrace, type Logger, pseudonym } from '@keytrail/telemetry';
import type { EventBus } from './bus.ts';
import { type ConsumerType, type EventType, userErasureRequested } from './catalogue.ts';
import { startConsumer } from './consumer.ts';
import { on } from './handlers.ts';
import { addEvent } from './outbox.ts';
import { startRounds } from './rounds.ts';

/** SQL for a migration of a service that erases users. */
export const erasuresMigration = `CREATE TABLE erasures (
  erasure_id uuid PRIMARY KEY,
  user_id text NOT NULL,
  requested_at timestamptz NOT NULL,
  noted_at timestamptz NOT NULL DEFAULT now(),
  erased_at timestamptz
);
CREATE INDEX erasures_of_user ON erasures (user_id);
CREATE TABLE erasure_counts (
  erasure_id uuid NOT NULL REFERENCES erasures (erasure_id) ON DELETE CASCADE,
  kind text NOT NULL CHECK (kind <> ''),
  erased bigint NOT NULL DEFAULT 0 CHECK (erased >= 0),
  kept bigint NOT NULL DEFAULT 0 CHECK (kept >= 0),
  PRIMARY KEY (erasure_id, kind)
);
`;

// Whoever writes rows of users holds this lock shared while it looks whether they are erased: once an erasure is noted, none of its user's
// rows is on its way any more. Part of the triggers of the migrations.
const waitForWriters = statement('erasure_wait_for_writers', `SELECT pg_advisory_xact_lock(hashtext('erasures'))`);
const note = statement(
  'erasure_note',
  'INSERT INTO erasures (erasure_id, user_id, requested_at) VALUES ($1, $2, $3) ON CONFLICT (erasure_id) DO NOTHING',
);
const known = statement('erasure_known', 'SELECT true AS known FROM erasures WHERE erasure_id = $1');
const lock = statement('erasure_lock', 'SELECT user_id, erased_at FROM erasures WHERE erasure_id = $1 FOR UPDATE');
const count = statement(
  'erasure_count',
  `INSERT INTO erasure_counts AS c (erasure_id, kind, erased, kept) VALUES ($1, $2, $3, $4)
   ON CONFLICT (erasure_id, kind) DO UPDATE SET erased = c.erased + excluded.erased, kept = c.kept + excluded.kept`,
);
const finish = statement(
  'erasure_finish',
  'UPDATE erasures SET erased_at = now() WHERE erasure_id = $1 RETURNING erased_at',
);
const readCounts = statement(
  'erasure_counts_read',
  'SELECT kind, erased, kept FROM erasure_counts WHERE erasure_id = $1 ORDER BY kind',
);
const unfinished = statement(
  'erasures_unfinished',
  'SELECT erasure_id, user_id FROM erasures WHERE erased_at IS NULL ORDER BY noted_at',
);
const forget = statement(
  'erasures_forget',
  `DELETE FROM erasures WHERE erased_at < now() - $1 * interval '1 millisecond' RETURNING user_id`,
);

export interface Erasure {
  /** UUID. */
  readonly erasureId: string;
  readonly userId: string;
}

/** How many of a kind of thing one batch erased, and how many it found that others still need. */
export interface ErasedCounts {
  readonly [kind: string]: { readonly erased?: number; readonly kept?: number };
}

/** One batch: what it did, and whether another one is needed. */
export interface ErasedBatch {
  readonly counts: ErasedCounts;
  readonly more: boolean;
}

export interface ErasingOptions {
  readonly bus: EventBus;
  readonly db: Database;
  readonly log: Logger;
  readonly service: string;
  readonly consumer: ConsumerType;
  readonly reply: EventType<typeof UserErasedSchema>;
  /** How often to take up what was left half done, and to forget what is old. */
  readonly everyMs: number;
  /** How long an erasure is remembered once it is done: so long no row of the user is written again. */
  readonly rememberMs: number;
  /** Done each time that the erasure is asked for, in a transaction of its own. */
  noted?(tx: Transaction, requested: UserErasureRequested): Promise<void>;
  /** Done together with the forgetting of erasures, for what was kept that long. */
  forgotten?(tx: Transaction, userIds: readonly string[]): Promise<void>;
  /**
   * The parts of the work, in their order. Each is called, in one transaction after the other, until it needs no more; it must find what is
   * left by itself, because it may have been stopped after any batch.
   */
  readonly parts: readonly ((tx: Transaction, erasure: Erasure) => Promise<ErasedBatch>)[];
  /** Done once, in the transaction that ends the erasure: what is counted then. */
  atLast?(tx: Transaction, erasure: Erasure): Promise<ErasedCounts>;
}

export interface Erasing {
  readonly ready: Promise<void>;
  /** Takes up what was left half done, and forgets what is old. */
  round(): Promise<void>;
  /** Resolves when the batches at hand are committed. */
  stop(): Promise<void>;
}

/**
 * Erases users when identity-keys asks for it, in batches that commit what they erased together with its count. Killed anywhere, it goes on
 * after the last batch: when the event comes again, or with the next round. An erasure that was done before is reported again.
 */
export function startErasing(options: ErasingOptions): Erasing {
  const { bus, db, log, service, consumer, reply, everyMs, rememberMs, noted, forgotten, parts, atLast } = options;
  let stopping = false;

  async function noteErasure(requested: UserErasureRequested): Promise<void> {
    const { erasureId, userId, requestedAt } = requested;
    if ((await db.query(known, [erasureId])).length === 0)
      await db.transaction(async (tx) => {
        await tx.query(waitForWriters, []);
        await tx.query(note, [erasureId, userId, requestedAt ? timestampDate(requestedAt) : new Date()]);
      });
    if (noted) await db.transaction((tx) => noted(tx, requested));
  }

  async function erase(erasure: Erasure): Promise<void> {
    for (const part of parts) {
      while (await inBatch(erasure, part)) {
        if (stopping) throw new Error('an erasure goes on after the restart');
      }
    }
    await report(erasure);
  }

  /** Replicas take turns: the erasure is locked for each batch. */
  function inBatch(erasure: Erasure, part: ErasingOptions['parts'][number]): Promise<boolean> {
    return db.transaction(async (tx) => {
      const [current] = await tx.query<{ erased_at: Date | null }>(lock, [erasure.erasureId]);
      if (!current || current.erased_at) return false;
      const { counts, more } = await part(tx, erasure);
      addCounts(tx, erasure, counts);
      return more;
    });
  }

  async function report(erasure: Erasure): Promise<void> {
    const { erasureId, userId } = erasure;
    await db.transaction(async (tx) => {
      const [current] = await tx.query<{ erased_at: Date | null }>(lock, [erasureId]);
      if (!current) return;
      if (!current.erased_at && atLast) addCounts(tx, erasure, await atLast(tx, erasure));
      const erasedAt =
        current.erased_at ?? (await tx.query<{ erased_at: Date }>(finish, [erasureId]))[0]?.erased_at ?? new Date();
      const counts = await tx.query<{ kind: string; erased: bigint; kept: bigint }>(readCounts, [erasureId]);
      const erased = { service, erasedAt: timestampFromDate(erasedAt), counts };
      await addEvent(tx, reply, { erasureId, report: erased }, { aggregate: erasureId });
    });
    keepTrace('user erased');
    log.info({ erasureId, user: pseudonym(userId) }, 'user erased');
  }

  async function round(): Promise<void> {
    const failures: unknown[] = [];
    // One that fails keeps back no other, nor what is to be forgotten.
    for (const { erasure_id: erasureId, user_id: userId } of await db.query<{ erasure_id: string; user_id: string }>(
      unfinished,
      [],
    )) {
      if (stopping) break;
      await erase({ erasureId, userId }).catch((error: unknown) => failures.push(error));
    }
    await db.transaction(async (tx) => {
      const gone = await tx.query<{ user_id: string }>(forget, [rememberMs]);
      if (gone.length > 0)
        await forgotten?.(
          tx,
          gone.map(({ user_id }) => user_id),
        );
    });
    if (failures.length > 0) throw new AggregateError(failures, `${failures.length} erasures could not go on`);
  }

  const consuming = startConsumer({
    bus,
    db,
    log,
    consumer,
    handlers: on(userErasureRequested, async (requested) => {
      await noteErasure(requested);
      await erase(requested);
    }),
  });
  const rounds = startRounds({
    what: 'the resumption of erasures',
    everyMs,
    log,
    async round() {
      await round();
      return false;
    },
  });

  return {
    ready: consuming.ready,
    round,
    async stop() {
      stopping = true;
      await Promise.all([consuming.stop(), rounds.stop()]);
    },
  };
}

function addCounts(tx: Transaction, { erasureId }: Erasure, counts: ErasedCounts): void {
  for (const [kind, { erased = 0, kept = 0 }] of Object.entries(counts))
    tx.send(count, [erasureId, kind, erased, kept]);
}
