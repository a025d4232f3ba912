import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { addEvent, type Rounds, startRounds, userErasureRequested, warnSparingly } from '@keytrail/events';
import type { Database, Transaction } from '@keytrail/storage';
import { keepTrace, type Logger, pseudonym, SpanKind, withSpan } from '@keytrail/telemetry';
import { eraseOwnRows, type Turn } from '../store/erase-own-rows.ts';
import {
  completeErasure,
  type Erasure,
  forgetErasedUsers,
  keepReport,
  runningErasures,
  takeAskingAgain,
} from '../store/erasures.ts';

export interface ErasingParts {
  readonly db: Database;
  readonly log: Logger;
  /** How often services that have not reported are asked again. */
  readonly everyMs: number;
  readonly batch: number;
  /** How long the ids of erased users are remembered after their erasures. */
  readonly rememberMs: number;
}

/** So that a large erasure does not keep others waiting: the next round goes on with it. */
const turnMs = 5_000;

/** The services that must report before this one erases what it has: they may still ask it about the user's devices. */
const others: readonly string[] = ['conversation', 'presence', 'session'];

export function askToErase(tx: Transaction, { erasureId, userId, deviceIds, requestedAt }: Erasure): Promise<void> {
  if (userId === undefined) throw new Error('nobody is erased twice');
  const requested = { erasureId, userId, deviceIds: [...deviceIds], requestedAt: timestampFromDate(requestedAt) };
  return addEvent(tx, userErasureRequested, requested, { aggregate: erasureId });
}

/**
 * Brings erasures to their end: asks services again whose report is missing (the request or the report was lost), erases what is here once
 * all have reported, and forgets the ids of users after their time. Killed anywhere, it goes on with the next round; replicas take turns.
 */
export function completeErasures(parts: ErasingParts): Rounds {
  const { db, log, everyMs, rememberMs } = parts;
  const failed = warnSparingly(log, 'an erasure failed; it is tried again');
  return startRounds({
    what: 'the completion of erasures',
    // Asking again has an interval of its own, over all replicas.
    everyMs: Math.max(1, Math.floor(everyMs / 2)),
    log,
    async round(proceed) {
      let more = false;
      for (const erasure of await runningErasures(db)) {
        if (!proceed()) return false;
        const end = performance.now() + turnMs;
        const turn = await step(parts, erasure, () => proceed() && performance.now() < end).catch((error: unknown) => {
          failed(error);
        });
        if (turn === 'interrupted') more = true;
      }
      await forgetErasedUsers(db, rememberMs);
      return more;
    },
  });
}

async function step(
  { db, log, everyMs, batch }: ErasingParts,
  erasure: Erasure & { readonly reported: readonly string[] },
  proceed: () => boolean,
): Promise<Turn | undefined> {
  const { erasureId, userId = '' } = erasure;
  const missing = others.filter((service) => !erasure.reported.includes(service));
  if (missing.length > 0) {
    await db.transaction(async (tx) => {
      if (!(await takeAskingAgain(tx, erasureId, everyMs))) return;
      await askToErase(tx, erasure);
      tx.afterCommit(() => log.warn({ erasureId, missing }, 'services are asked again to erase a user'));
    });
    return undefined;
  }
  return withSpan('complete erasure', { kind: SpanKind.INTERNAL }, async () => {
    const turn = await eraseOwnRows(db, erasureId, { most: batch, proceed });
    if (turn !== 'ended') return turn;
    keepTrace('user erased');
    await db.transaction(async (tx) => {
      await keepReport(tx, erasureId, { service: 'identity-keys', erasedAt: new Date(), counts: [] });
      await completeErasure(tx, erasureId);
    });
    log.info({ erasureId, user: pseudonym(userId) }, 'user erased');
    return turn;
  });
}
