import { type Database, type Queryable, statement, type Transaction } from '@keytrail/storage';
import { describeError } from '@keytrail/telemetry';
import type { EventBus } from './bus.ts';

/** A dead letter as it is kept. */
export interface KeptDeadLetter {
  readonly id: bigint;
  readonly consumer: string;
  readonly subject: string;
  readonly eventId: string;
  /** The protobuf message, binary: it may name users. */
  readonly payload: Uint8Array;
  readonly traceparent: string;
  readonly reason: string;
  readonly at: Date;
}

/** Has a consumer handle a dead letter once more, in the transaction where its handler runs in one. Throws what the handler throws. */
export type ReplayLetter = (letter: KeptDeadLetter, tx: Transaction) => Promise<void>;

export type Replayed =
  | { readonly outcome: 'handled'; readonly letter: KeptDeadLetter }
  | { readonly outcome: 'failed'; readonly letter: KeptDeadLetter; readonly problem: string }
  | { readonly outcome: 'unknown' };

const columns = 'id, consumer, subject, event_id AS "eventId", payload, traceparent, reason, at';
const list = statement(
  'dead_letters_list',
  `SELECT ${columns} FROM dead_letters WHERE id > $1 AND ($2 = '' OR consumer = $2) ORDER BY id LIMIT $3`,
);
const lock = statement('dead_letter_lock', `SELECT ${columns} FROM dead_letters WHERE id = $1 FOR UPDATE`);
const remove = statement('dead_letter_delete', 'DELETE FROM dead_letters WHERE id = $1');

/** Oldest first, after one of them; of one consumer, or with '' of all. */
export function listDeadLetters(
  db: Queryable,
  { after, consumer, most }: { readonly after: bigint; readonly consumer: string; readonly most: number },
): Promise<KeptDeadLetter[]> {
  return db.query<KeptDeadLetter>(list, [after, consumer, most]);
}

/**
 * Has the consumer of a dead letter handle it once more, in one transaction with the deletion of the letter and with `handled`; when its
 * handler throws, the letter stays as it is. Who replays the same letter at the same time waits, and then finds none.
 */
export async function replayDeadLetter(
  db: Database,
  bus: Pick<EventBus, 'replays'>,
  id: bigint,
  handled: (tx: Transaction, letter: KeptDeadLetter) => Promise<void>,
): Promise<Replayed> {
  let kept: KeptDeadLetter | undefined;
  let problem = '';
  try {
    return await db.transaction(async (tx) => {
      const [letter] = await tx.query<KeptDeadLetter>(lock, [id]);
      if (!letter) return { outcome: 'unknown' };
      kept = letter;
      const replay = bus.replays.get(letter.consumer);
      if (!replay) {
        problem = `no consumer ${letter.consumer} runs in this process`;
        return { outcome: 'failed', letter, problem };
      }
      await replay(letter, tx).catch((error: unknown) => {
        const { type, message } = describeError(error);
        problem = `${type}: ${message}`;
        throw error;
      });
      await tx.query(remove, [id]);
      await handled(tx, letter);
      return { outcome: 'handled', letter };
    });
  } catch (error) {
    if (!kept || problem === '') throw error;
    return { outcome: 'failed', letter: kept, problem };
  }
}
