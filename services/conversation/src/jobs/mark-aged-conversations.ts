import { type Rounds, startRounds } from '@keytrail/events';
import { type Logger, SpanKind, withSpan } from '@keytrail/telemetry';
import { announceRotationDue } from '../announcements.ts';
import type { Parts } from '../parts.ts';
import { markAgedConversations } from '../store/rotations.ts';
import { writerOf } from '../writer.ts';

/** A conversation may have a thousand members, who are all named in its event. */
const conversationsAtOnce = 50;

interface AgeParts extends Pick<Parts, 'db' | 'writerBuild'> {
  readonly log: Logger;
  /** 0 for never. */
  readonly maxAgeMs: number;
}

/**
 * Makes rotations due where the session is as old as it may become: one batch a round, so that a great many that are of one age come to
 * their devices little by little.
 */
export function markAged(parts: AgeParts, everyMs: number): Rounds {
  return startRounds({
    what: 'looking for sessions that are too old',
    everyMs,
    log: parts.log,
    async round() {
      if (parts.maxAgeMs > 0) await markNextAged(parts);
      return false;
    },
  });
}

/** How many were marked, `conversationsAtOnce` at most. */
export function markNextAged(parts: AgeParts): Promise<number> {
  return withSpan('mark aged sessions', { kind: SpanKind.INTERNAL }, () =>
    parts.db.transaction(async (tx) => {
      const marked = await markAgedConversations(tx, parts.maxAgeMs, conversationsAtOnce, writerOf(parts));
      for (const conversation of marked) await announceRotationDue(tx, conversation);
      if (marked.length > 0)
        tx.afterCommit(() => parts.log.info({ conversations: marked.length }, 'rotations became due by age'));
      return marked.length;
    }),
  );
}
