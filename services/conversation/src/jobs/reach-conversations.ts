import { type Rounds, startRounds } from '@keytrail/events';
import type { Transaction } from '@keytrail/storage';
import { contextFromTraceparent, keepTrace, type Logger, SpanKind, withSpan } from '@keytrail/telemetry';
import { announceChangedDevices, announceRotationDue } from '../announcements.ts';
import type { Parts } from '../parts.ts';
import {
  type IdentityChange,
  lockNextChange,
  markNextConversations,
  nextPeersToTell,
  putOffChange,
} from '../store/identity-changes.ts';
import { writerOf } from '../writer.ts';

/** A conversation may have a thousand members, who are all named in its event. */
const conversationsAtOnce = 50;
const peersAtOnce = 1_000;

type ReachParts = Pick<Parts, 'db' | 'writerBuild'> & { readonly log: Logger };

/**
 * Reaches the conversations and the peers of users whose devices changed: a page, in a transaction of its own, after the other, until
 * none is left. Replicas share the users; who takes over from a replica that died goes on at its last page.
 */
export function reachConversations(parts: ReachParts, everyMs: number): Rounds {
  return startRounds({
    what: 'reaching the conversations of changed devices',
    everyMs,
    log: parts.log,
    round: () => reachNextPage(parts),
  });
}

/** True when there was something to do. Throws what failed; the change goes behind all others then, so that it keeps none of them back. */
export async function reachNextPage(parts: ReachParts, most = { conversationsAtOnce, peersAtOnce }): Promise<boolean> {
  let reaching: IdentityChange | undefined;
  try {
    return await parts.db.transaction(async (tx) => {
      const change = await lockNextChange(tx);
      reaching = change;
      if (!change) return false;
      await withSpan(
        'reach conversations',
        { kind: SpanKind.INTERNAL, parent: contextFromTraceparent(change.traceparent) },
        () =>
          change.marks ? markPage(parts, tx, change, most.conversationsAtOnce) : tellPage(tx, change, most.peersAtOnce),
      );
      return true;
    });
  } catch (error) {
    // What failed is what is told; where the database is away, this fails as well.
    if (reaching) await putOffChange(parts.db, reaching.userId).catch(() => {});
    throw error;
  }
}

async function markPage(parts: ReachParts, tx: Transaction, change: IdentityChange, most: number): Promise<void> {
  keepTrace('device_revoked');
  const marked = await markNextConversations(tx, change, most, writerOf(parts));
  for (const conversation of marked) await announceRotationDue(tx, conversation);
  tx.afterCommit(() => parts.log.info({ conversations: marked.length }, 'rotations became due after a revocation'));
}

async function tellPage(tx: Transaction, change: IdentityChange, most: number): Promise<void> {
  const peers = await nextPeersToTell(tx, change, most);
  const first = change.toldTo === '';
  await announceChangedDevices(tx, change.userId, first ? [change.userId, ...peers] : peers);
}
